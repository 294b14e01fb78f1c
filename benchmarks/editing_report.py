"""Tables, plot and contact sheet of the editing benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import provenance
from PIL import Image, ImageDraw, ImageFont

from retrace.backends.pictures import grid

from editing_methods import BASELINE, entries  # isort: skip

def write(rows, bounds, where, output):
    for r in rows: print(r["job"]["entry"], r.get("calls"), r.get("refused"), r.get("free",{}).get("all"), r.get("masked",{}).get("all"), r.get("equal_outside"))
