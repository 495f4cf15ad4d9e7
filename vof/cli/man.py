# SPDX-License-Identifier: BSD-3-Clause
"""``vof man``: manual pages, made of what ``--help`` and ``--help-config`` are made of.

A page is roff with the macros of man(7), without anything beyond them; all else than ASCII is
escaped, so any formatter of pages renders it.
"""

import argparse
import re
from collections.abc import Iterator

from vof import __version__
from vof.cli import COMMANDS, parsers

FILE = "target.toml"
"""The topic that is no command."""

OVERVIEW = """Virtio gives every virtual device one driver interface, the virtqueue. Here each
buffer of a virtqueue is a command on a connection, so that driver and device need not share a
machine. A target serves devices; all other commands use them, by their URLs.

A URL is vof+tcp://HOST[:PORT]/TVQN, vof+rdma://HOST[:PORT]/TVQN or vof+unix:///PATH?tvqn=TVQN,
where TVQN is the name that the target gave the device."""
EXITS = {"0": "done", "1": "failed, which is said on stderr", "2": "wrong usage or configuration"}
ENVIRONMENT = {
    "VOF_IVQN": "Name of this initiator (default initiator/HOST/PID); a target may ask for it.",
    "VOF_POLL_US": "Longest spin before a sleep, in microseconds (default 100); 0 turns it off.",
}

EXIT = re.compile(r"\n|, (?=\d+ )")
"""What stands between the exit codes of a help."""
SECTIONS = {FILE: 5}


def section(topic: str) -> int:
    """Return the section of the manual in which the page of a topic is."""
    return SECTIONS.get(topic, 1)


def page(topic: str) -> str:
    """Return the name of a topic's page: "" is vof itself."""
    return f"vof-{topic}" if topic else "vof"


def topics() -> list[str]:
    """Return all there are pages of."""
    return ["", *COMMANDS, FILE]


# -- roff -----------------------------------------------------------------------------------------


def escape(text: str) -> str:
    """Return text that roff shows as it is."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga")
    text = re.sub(r"[^\x00-\x7f]", lambda match: f"\\[u{ord(match[0]):04X}]", text)
    return re.sub(r"^\.", r"\\&.", text, flags=re.MULTILINE)


def _bold(text: str) -> str:
    return f"\\fB{escape(text)}\\fR"


def _item(term: str, text: str) -> Iterator[str]:
    """Give one entry of a list; ``term`` is roff already."""
    yield from (".TP", term, escape(text) or "\\&")


def _literal(lines: list[str]) -> Iterator[str]:
    """Give lines as they stand."""
    yield from (".RS 4", ".nf")
    yield from (escape(line) or "\\&" for line in lines)
    yield from (".fi", ".RE")


def _head(topic: str, summary: str) -> Iterator[str]:
    name, number = page(topic), section(topic)
    yield f'.TH {escape(name.upper())} {number} "" "vof {__version__}" "Virtio over Fabrics"'
    yield from (".SH NAME", f"{escape(name)} \\- {escape(summary)}")


def _see_also(topic: str) -> Iterator[str]:
    others = [f"{_bold(page(one))}({section(one)})" for one in topics() if one != topic]
    yield from (".SH SEE ALSO", ",\n".join(others))


# -- commands -------------------------------------------------------------------------------------


def _usage(parser: argparse.ArgumentParser) -> str:
    """Return the usage in one line of roff."""
    words = " ".join(parser.format_usage().split()).removeprefix("usage: ")
    return _bold(parser.prog) + escape(words.removeprefix(parser.prog))


def _entry(parser: argparse.ArgumentParser, action: argparse.Action) -> Iterator[str]:
    """Give one argument or option."""
    formatter = parser._get_formatter()
    default = action.dest.upper() if action.option_strings else action.dest
    values = formatter._format_args(action, default) if action.nargs != 0 else ""
    names = ", ".join(map(_bold, action.option_strings)) or _bold(values)
    rest = f" {escape(values)}" if action.option_strings and values else ""
    yield from _item(names + rest, formatter._expand_help(action) if action.help else "")


def _subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the parsers of what ``parser`` lets one choose from."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _arguments(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Give all arguments and options but those that choose a command."""
    for action in parser._actions:
        if not isinstance(action, argparse._SubParsersAction):
            yield from _entry(parser, action)


def _prose(text: str) -> Iterator[str]:
    """Give prose of a help: paragraphs, examples (indented), and lists under a short title."""
    for block in filter(None, text.split("\n\n")):
        lines = block.splitlines()
        plain = [line for line in lines if not line.startswith(" ")]
        indented = [line.strip() for line in lines if line.startswith(" ")]
        if block.startswith("exit codes:"):
            yield ".SH EXIT STATUS"
            for line in EXIT.split(block.removeprefix("exit codes:").strip()):
                code, _, meaning = line.strip().partition(" ")
                yield from _item(_bold(code), meaning.strip())
            continue
        yield from (".PP", *map(escape, plain))
        if indented:
            yield from _literal(indented)


def _command(topic: str) -> Iterator[str]:
    """Give the page of one command."""
    parser = parsers(topic)[1]
    assert parser is not None
    actions = _subcommands(parser)
    yield from _head(topic, COMMANDS[topic][1])
    yield ".SH SYNOPSIS"
    for one in actions.values() or (parser,):
        yield from (_usage(one), ".br")
    yield from (".SH DESCRIPTION", escape(parser.description or ""))
    epilog = list(_prose(parser.epilog or ""))
    cut = epilog.index(".SH EXIT STATUS") if ".SH EXIT STATUS" in epilog else len(epilog)
    yield from epilog[:cut]
    yield from (".SH OPTIONS", *_arguments(parser))
    helps = {
        choice.dest: choice.help or ""
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
        for choice in action._choices_actions
    }
    for name, one in actions.items():
        yield f".SS {escape(name)}"
        if helps.get(name):
            yield escape(helps[name][0].upper() + helps[name][1:] + ".")
        yield from _arguments(one)
    yield from epilog[cut:] or _exits()
    yield from _see_also(topic)


def _exits() -> Iterator[str]:
    yield ".SH EXIT STATUS"
    for code, meaning in EXITS.items():
        yield from _item(_bold(code), meaning)


def _overview() -> Iterator[str]:
    """Give vof(1)."""
    parser = parsers(None)[0]
    yield from _head("", "virtio devices over TCP and unix sockets")
    yield from (".SH SYNOPSIS", _usage(parser))
    yield ".SH DESCRIPTION"
    yield from _prose(OVERVIEW)
    yield from (".SH OPTIONS", *_arguments(parser), ".SH COMMANDS")
    for name, (_, summary) in COMMANDS.items():
        yield from _item(
            f"{_bold(name)}", f"{summary[0].upper()}{summary[1:]}; see {page(name)}(1)."
        )
    yield from _exits()
    yield ".SH ENVIRONMENT"
    for name, text in ENVIRONMENT.items():
        yield from _item(_bold(name), text)
    yield from _see_also("")


# -- the file -------------------------------------------------------------------------------------


def _file() -> Iterator[str]:
    """Give the page of the configuration file, line by line of what describes it."""
    from vof.target.config import describe

    yield from _head(FILE, "what a target serves")
    yield from (".SH DESCRIPTION", "A TOML file, read by")
    yield f"{_bold('vof target --config')} \\fIFILE\\fR."
    yield "The keys below have their defaults; a key with an empty value is not set by default."
    yield ".SH KEYS"
    for line in filter(None, describe().splitlines()[1:]):
        if line.startswith("["):
            yield f".SS {escape(line)}"
            continue
        setting, _, text = line.removeprefix("# ").partition("  # ")
        key, equals, value = setting.partition(" = ")
        if equals:
            yield from _item(f"{_bold(key)} = {escape(value)}", text)
        else:
            yield from (".PP", escape(setting))
    yield from (".SH EXAMPLE", "A disk and a source of random bytes on the loopback interface:")
    yield from _literal(
        [
            *('listen = ["vof+tcp://127.0.0.1:8549"]', ""),
            *("[[device]]", 'type = "blk"', 'path = "disk0.img"', 'tvqn = "disk0"', ""),
            *("[[device]]", 'type = "rng"', 'tvqn = "rng0"'),
        ]
    )
    yield from _see_also(FILE)


def render(topic: str) -> str:
    """Return the page of a topic."""
    lines = {"": _overview, FILE: _file}.get(topic, lambda: _command(topic))()
    return "\n".join(lines) + "\n"


# -- the command ----------------------------------------------------------------------------------


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.epilog = "To read one that is not installed:\n  vof man target | man -l -"
    parser.add_argument(
        "topic",
        nargs="?",
        default="",
        choices=topics(),
        metavar="TOPIC",
        help=f"a command, or {FILE} for the configuration file; without it, vof itself",
    )


def run(args: argparse.Namespace) -> int:
    """Print one page."""
    print(render(args.topic), end="")
    return 0
