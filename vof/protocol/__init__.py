# SPDX-License-Identifier: BSD-3-Clause
"""The wire: tables, codecs and state machines of the fabric protocol. Pure: no I/O."""
