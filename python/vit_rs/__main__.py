"""`python -m vit_rs` is the command `vit-rs`."""

from __future__ import annotations

import sys

from vit_rs.cli import main

if __name__ == "__main__":
    sys.exit(main())
