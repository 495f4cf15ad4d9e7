# SPDX-License-Identifier: BSD-3-Clause
"""The target: presents device models to initiators over the fabric."""
