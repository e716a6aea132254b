"""The FinOps Foundation's own validator over our FOCUS export: which rules of the specification it applied, and which it saw broken.

Hand-run, in an environment of its own with Python 3.12, because the validator pins NumPy 1 and pandas 2:

    python3.12 -m venv ENV && ENV/bin/pip install focus-validator==2.2.1 pyarrow==19.0.1
    moeline costs export --out costs.csv && ENV/bin/python tests/oracles/focus_validator.py costs.csv

It knows FOCUS 1.2 (model 1.2.0.1); what 1.3 added is held by jobs/focus.py and tests/unit/test_focus.py. Exit status 1 when a rule is broken.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

SUPPORTED = (  # of the concepts a provider may support, those the ledger has
    "ACCOUNT_NAMING_SUPPORTED", "BILLING_BASED_ON_PROVISIONED_RESOURCES_SUPPORTED", "MULTIPLE_PRICING_CATEGORIES_SUPPORTED", "NEGOTIATED_PRICING_SUPPORTED",
    "PUBLIC_PRICE_LIST_SUPPORTED", "RESOURCE_TYPE_ASSIGNMENT_SUPPORTED", "TAGGING_SUPPORTED", "UNIT_PRICING_SUPPORTED", "USAGE_MEASUREMENT_SUPPORTED",
)  # fmt: skip
# It cannot know which charges are on an invoice and reports both "must be null without one" and "must not be null with one"; estimates have none.
UNDECIDABLE = "InvoiceId-C-005-C"


def main(files: list[str]) -> int:
    worst = 0
    for file in files:
        command = [
            str(Path(sys.executable).parent / "focus-validator"), "--data-file", os.path.abspath(file), "--validate-version", "1.2", "--block-download",
            "--applicability-criteria", ",".join(SUPPORTED), "--output-type", "console", "--show-violations",
        ]  # fmt: skip
        # It reads its list of currencies by a path relative to the folder it is installed in.
        done = subprocess.run(command, cwd=sysconfig.get_paths()["purelib"], capture_output=True, text=True, check=False)
        lines = done.stdout.splitlines()
        totals = [line for line in lines if line.startswith("Total:")]
        failed = [line for line in lines if ": FAIL " in line and UNDECIDABLE not in line]
        print("\n".join([f"{file}: {totals[0] if totals else 'no result'}", *failed, *(done.stderr.splitlines()[-3:] if not totals else [])]))
        worst = max(worst, int(bool(failed) or not totals))
    return worst


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
