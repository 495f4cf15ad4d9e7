# SPDX-License-Identifier: BSD-3-Clause
"""URLs: what they mean, what is refused, and that their text gives them back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vof.errors import ConfigError
from vof.protocol import v5
from vof.transport import SCHEMES, Url, parse_url

GOOD = {
    "vof+tcp://host/disk": Url("vof+tcp", "host", 8549, tvqn="disk"),
    "vof+tcp://host": Url("vof+tcp", "host", 8549),
    "vof+tcp://host/": Url("vof+tcp", "host", 8549),
    "vof+tcp://10.0.0.1:99/a/b:c.d-e": Url("vof+tcp", "10.0.0.1", 99, tvqn="a/b:c.d-e"),
    "vof+tcp://[::1]:0/x": Url("vof+tcp", "::1", 0, tvqn="x"),
    "vof+tcp://[2001:db8::7]/x": Url("vof+tcp", "2001:db8::7", 8549, tvqn="x"),
    "vof+tcp://[fe80::1%25eth0]/x": Url("vof+tcp", "fe80::1%eth0", 8549, tvqn="x"),
    "vof+tcp://h/x?dialect=v5": Url("vof+tcp", "h", 8549, tvqn="x", options=(("dialect", "v5"),)),
    "vof+tcp://h/what%3F%23%20100%25": Url("vof+tcp", "h", 8549, tvqn="what?# 100%"),
    "vof+tcp://h//x": Url("vof+tcp", "h", 8549, tvqn="/x"),
    "vof+tcp://h/%C3%A9": Url("vof+tcp", "h", 8549, tvqn="é"),
    "vof+rdma://host/disk": Url("vof+rdma", "host", 8549, tvqn="disk"),
    "vof+rdma://[fd00::1]:99": Url("vof+rdma", "fd00::1", 99),
    "vof+rdma://h/x?dialect=v0": Url(
        "vof+rdma", "h", 15771, tvqn="x", options=(("dialect", "v0"),)
    ),
    "vof+tcp://what%40%25%20%0a": Url("vof+tcp", "what@% \n", 8549),
    "vof+unix:///run/s": Url("vof+unix", path="/run/s"),
    "vof+unix:///run/s?tvqn=disk": Url("vof+unix", path="/run/s", tvqn="disk"),
    "vof+unix:///run/s?tvqn=a/b%26c%3Dd+e": Url("vof+unix", path="/run/s", tvqn="a/b&c=d e"),
    "vof+unix:///a%20b%3F?tvqn=x&dialect=v5": Url(
        "vof+unix", path="/a b?", tvqn="x", options=(("dialect", "v5"),)
    ),
    "vof+loopback://name/disk": Url("vof+loopback", "name", tvqn="disk"),
    "vof+loopback://name": Url("vof+loopback", "name"),
    "VOF+TCP://HOST/Disk": Url("vof+tcp", "host", 8549, tvqn="Disk"),
}

BAD = {
    "": "unknown scheme",
    "host/disk": "unknown scheme",
    "http://host/disk": "unknown scheme",
    "vof+tcp:/host/disk": r"expected vof\+tcp://host",
    "vof+tcp:///disk": r"expected vof\+tcp://host",
    "vof+tcp://:80/disk": r"expected vof\+tcp://host",
    "vof+tcp://me@host/disk": r"expected vof\+tcp://host",
    "vof+tcp://:secret@host/disk": r"expected vof\+tcp://host",
    "vof+tcp://host/disk#part": r"expected vof\+tcp://host",
    "vof+tcp://host:port/disk": "not a URL",
    "vof+tcp://host:65536/disk": "not a URL",
    "vof+tcp://host:-1/disk": "not a URL",
    "vof+tcp://[::1/disk": "not a URL",
    "vof+tcp://host/disk?dialect=v4": "dialect: unknown option or value 'v4'",
    "vof+tcp://host/disk?dialect": "dialect: unknown option",
    "vof+tcp://host/disk?colour=red": "colour: unknown option",
    "vof+tcp://host/disk?tvqn=disk": "tvqn: unknown option",
    "vof+tcp://a%3Ab": r"expected vof\+tcp://host",
    "vof+rdma:///disk": r"expected vof\+rdma://host",
    "vof+unix://": r"expected vof\+unix:///path",
    "vof+unix://run/s": r"expected vof\+unix:///path",
    "vof+unix://:80/s": r"expected vof\+unix:///path",
    "vof+unix:///run/s?dialect=": "dialect: unknown option",
    "vof+loopback:///disk": r"expected vof\+loopback://name",
    "vof+loopback://name:80/disk": r"expected vof\+loopback://name",
}


@pytest.mark.parametrize(("text", "url"), GOOD.items())
def test_a_good_url(text, url):
    assert parse_url(text) == url
    assert parse_url(str(url)) == url


@pytest.mark.parametrize(("text", "message"), BAD.items())
def test_a_bad_url(text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        parse_url(text)
    assert caught.value.path == text


@pytest.mark.parametrize(
    "text",
    [
        "vof+tcp://host:8549/disk",
        "vof+tcp://[::1]:80/a/b",
        "vof+unix:///run/s?tvqn=a/b&dialect=v5",
        "vof+loopback://name/disk?dialect=v5",
        "vof+tcp://host:1",
    ],
)
def test_the_usual_text_comes_back_as_it_was(text):
    assert str(parse_url(text)) == text


names = st.text(st.characters(blacklist_categories=["Cs"]), max_size=20)
hosts = st.text("abcxyz019.-", min_size=1, max_size=10) | st.ip_addresses().map(str)
options = st.sampled_from([(), (("dialect", "v5"),)])
none = st.just("")
urls = st.one_of(
    st.builds(Url, st.just("vof+tcp"), hosts, st.integers(0, 65535), none, names, options),
    st.builds(Url, st.just("vof+loopback"), hosts, st.just(0), none, names, options),
    st.builds(Url, st.just("vof+unix"), none, st.just(0), names.map("/".__add__), names, options),
)
parts = [*SCHEMES, "://", "/", "?", "#", "@", ":", "[", "]", "%", "%41", "a", "8", "tvqn=", "&"]
texts = st.one_of(st.text(), st.lists(st.sampled_from(parts)).map("".join))


@given(urls)
def test_text_and_back(url):
    assert parse_url(str(url)) == url


@given(texts)
def test_any_text_is_a_url_or_refused(text):
    try:
        url = parse_url(text)
    except ConfigError:
        return
    assert parse_url(str(url)) == url


def test_another_device():
    url = parse_url("vof+unix:///run/s?tvqn=a&dialect=v5")
    assert str(url.with_tvqn("b")) == "vof+unix:///run/s?tvqn=b&dialect=v5"


def test_the_port_is_the_one_of_the_protocol():
    assert parse_url("vof+tcp://h").port == v5.PORT
