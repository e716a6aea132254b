"""The ledger as a FOCUS 1.3 dataset: its rules, phases of an attempt, rows of old, corrections."""

import csv
import datetime as dt
import json
import time
from dataclasses import replace
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from expectations.costs import COLUMNS
from jobs import cli, focus
from jobs.contract import MoelineError
from jobs.services import charges, delta, ledger, report

# Columns of the first ledger, before FOCUS 1.3's conditional ones came: what tables in use hold.
OLD = (
    "BilledCost", "EffectiveCost", "ListCost", "ContractedCost", "BillingAccountId", "BillingAccountName", "BillingCurrency", "BillingPeriodStart",
    "BillingPeriodEnd", "ChargePeriodStart", "ChargePeriodEnd", "ChargeCategory", "ChargeClass", "ChargeDescription", "InvoiceIssuerName",
    "PricingQuantity", "PricingUnit", "ServiceProviderName", "ProviderName", "PublisherName", "ServiceCategory", "ServiceName", "x_AttemptId",
    "x_RunKey", "x_Recipe", "x_Stage", "x_Phase", "x_Interval", "x_DagId", "x_DagRunId", "x_TaskId", "x_MapIndex", "x_TaskTry", "x_Outcome",
    "x_WallSeconds", "x_Cores", "x_MemoryGib", "x_Gpus", "x_EnergyKwh", "x_Tokens", "x_Flops", "x_Error",
)  # fmt: skip
# FOCUS 1.3, dataset Cost and Usage: feature level Mandatory (ProviderName and PublisherName deprecated, still to be present).
MANDATORY = (
    "BilledCost", "BillingAccountId", "BillingAccountName", "BillingCurrency", "BillingPeriodEnd", "BillingPeriodStart", "ChargeCategory",
    "ChargeClass", "ChargeDescription", "ChargePeriodEnd", "ChargePeriodStart", "ContractedCost", "EffectiveCost", "HostProviderName",
    "InvoiceIssuerName", "ListCost", "PricingQuantity", "PricingUnit", "ProviderName", "PublisherName", "ServiceCategory", "ServiceName",
    "ServiceProviderName",
)  # fmt: skip


def attempt(env, **more):
    return ledger.Attempt(**{"stage": "train", "recipe": "tiny", "run_key": "k" * 32, "interval": None, "resources": env.stage_resources("train"),
                             "started_at": 1_793_500_000.0, **more})  # fmt: skip


def charged(env, seconds=3600.0, **more):
    one = attempt(env, **more)
    row = ledger.charge_row(env, one, one.started_at + seconds, "succeeded")
    delta.append(env, "costs", [row])
    return row


def read_csv(file):
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def test_an_export_has_the_mandatory_columns_first_and_custom_ones_last(env, tmp_path):
    charged(env)
    focus.export(env, tmp_path / "costs.csv", "csv")
    names = (tmp_path / "costs.csv").read_text().splitlines()[0].split(",")
    assert set(MANDATORY) <= set(names) and len(names) == len(set(names))
    custom = [n.startswith("x_") for n in names]
    assert custom == sorted(custom)


def test_csv_and_parquet_hold_the_same_exact_amounts(env, tmp_path):
    charged(env, seconds=0.001)  # small enough that a float would be written with an exponent
    charged(env, seconds=86_400.0 * 40)
    for form in focus.FORMATS:
        focus.export(env, tmp_path / f"costs.{form}", form)
    text, table = read_csv(tmp_path / "costs.csv"), pq.read_table(tmp_path / "costs.parquet").to_pylist()
    assert [Decimal(r["BilledCost"]) for r in text] == [Decimal(repr(r["BilledCost"])) for r in table]
    assert not any("e" in r["BilledCost"].lower() for r in text)
    assert [r["ChargePeriodEnd"][-1] for r in text] == ["Z", "Z"] and all(r["ChargePeriodStart"] < r["ChargePeriodEnd"] for r in text)
    for row in table:
        assert row["ContractedUnitPrice"] * row["PricingQuantity"] == pytest.approx(row["ContractedCost"], rel=1e-12)


def test_an_attempt_has_one_row_per_phase_that_together_are_its_whole_time(env):
    running = ledger.Running(env, attempt(env, started_at=time.time() - 30))
    with running.phase("checks"):
        time.sleep(0.05)
    total = running.close("succeeded", tokens=7)
    rows = {r["x_Phase"]: r for r in delta.rows(env, "costs")}
    assert set(rows) == {"train", "checks"} and len({r["x_AttemptId"] for r in rows.values()}) == 1
    assert 0.05 <= rows["checks"]["x_WallSeconds"] < 5 and rows["train"]["x_WallSeconds"] > 29
    assert sum(r["BilledCost"] for r in rows.values()) == pytest.approx(total, rel=1e-12)
    assert (rows["train"]["x_Tokens"], rows["checks"]["x_Tokens"]) == (7, None), "tokens are counted once"
    (one,) = report.attempts(env)
    assert one["BilledCost"] == pytest.approx(total) and set(one["cost_by_phase"]) == {"train", "checks"} and one["x_Phase"] == "train"


def test_rows_of_old_are_read_and_completed_and_new_ones_stand_beside_them(env, tmp_path):
    from deltalake import write_deltalake

    old = {k: v for k, v in charged(env).items() if k in OLD} | {"PricingQuantity": 2.0, "PricingUnit": "core-hours"}
    kinds = {name: kind for name, kind, *_ in COLUMNS}
    other = replace(env, warehouse=tmp_path / "old")
    write_deltalake(str(other.warehouse / "costs"), pa.Table.from_pylist([old], schema=pa.schema([(n, delta.arrow_type(kinds[n])) for n in OLD])))
    assert delta.rows(other, "costs")[0]["HostProviderName"] is None and report.attempts(other)[0]["BilledCost"] == old["BilledCost"]
    charged(other, run_key="n" * 32)
    first, second = sorted(focus.dataset(other), key=lambda r: r["x_RunKey"])
    assert (first["PricingUnit"], first["PricingQuantity"], first["SkuId"]) == ("Hours", pytest.approx(1.0), second["SkuId"])
    assert first["ListUnitPrice"] == pytest.approx(second["ListUnitPrice"]) and first["HostProviderName"] == "local"


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"BilledCost": float("nan")}, "numbers must be finite"),
        ({"PricingUnit": "core-hours"}, "PricingUnit must be a FOCUS unit"),
        ({"ListUnitPrice": 99.0}, "ListUnitPrice x PricingQuantity must be ListCost"),
        ({"ChargeCategory": "Compute"}, "ChargeCategory must be an allowed value"),
        ({"ChargeClass": "Refund"}, "ChargeClass must be Correction or null"),
        ({"SkuPriceId": "a/spot", "SkuId": None}, "SkuPriceId must have a SkuId"),
        ({"BillingCurrency": "Dollar"}, "BillingCurrency must be an ISO 4217 code"),
        ({"HostProviderName": None}, "HostProviderName must not be null"),
        ({"ServiceSubcategory": "Rockets"}, "ServiceSubcategory must belong to its ServiceCategory"),
        ({"Tags": "recipe=tiny"}, "Tags must be a JSON object"),
        ({"AllocatedResourceId": "r"}, "only allocated charges may name what they are allocated to"),
        ({"AllocatedMethodId": "m", "AllocatedMethodDetails": json.dumps({"Elements": [{"AllocatedRatio": 0.9}]})}, "must sum to 1"),
        ({"ConsumedUnit": None}, "ConsumedUnit must be null exactly when"),
        ({"PricingCategory": None}, "PricingCategory must not be null for usage"),
    ],
)
def test_a_row_that_breaks_a_rule_stops_the_export_and_names_the_rule(env, tmp_path, change, rule):
    one = attempt(env)
    delta.append(env, "costs", [ledger.charge_row(env, one, one.started_at + 60, "succeeded") | change])
    with pytest.raises(MoelineError, match=rule):
        focus.export(env, tmp_path / "costs.csv", "csv")
    assert not (tmp_path / "costs.csv").exists()


def test_a_correction_is_a_new_row_and_only_that_of_a_closed_month_is_classed_as_one(env):
    row = charged(env, seconds=3600.0)
    end_of_month = row["BillingPeriodEnd"].timestamp()
    for now, wanted in ((end_of_month - 1, None), (end_of_month, "Correction")):
        fixed = charges.correction(env, row, -600.0, "counted twice", "own", now=now)
        assert (fixed["ChargeClass"], fixed["x_CorrectsId"]) == (wanted, row["x_AttemptId"])
        assert fixed["BilledCost"] == pytest.approx(-row["BilledCost"] / 6) and fixed["x_EnergyKwh"] == pytest.approx(-row["x_EnergyKwh"] / 6)
        assert focus.violations([focus.completed(r) for r in (row, fixed)]) == {}
    delta.append(env, "costs", [fixed])
    (one,) = report.attempts(env)
    assert one["BilledCost"] == pytest.approx(row["BilledCost"] * 5 / 6) and report.summary(env)["attempts"] == 1


def test_days_are_asked_for_by_when_a_charge_began(env, tmp_path, capsys):
    for day in range(3):
        charged(env, started_at=dt.datetime(2026, 11, 1 + day, 23, 59, tzinfo=dt.UTC).timestamp())
    out = tmp_path / "folder" / "costs.csv"
    asked = ["costs", "export", "--out", str(out), "--from", "2026-11-02", "--to", "2026-11-02", "--home", str(env.home), "--json"]
    assert cli.main(asked) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 1
    assert [r["ChargePeriodStart"] for r in read_csv(out)] == ["2026-11-02T23:59:00Z"]
    assert cli.main([*asked[:-3], "--from", "yesterday", "--home", str(env.home)]) == 1
    assert "YYYY-MM-DD" in capsys.readouterr().err


def test_every_row_says_how_its_energy_was_estimated(env):
    row = charged(env, seconds=3600.0)
    assert row["x_EnergyKwh"] == pytest.approx((2 * 12.0 + 4 * 0.35) / 1000)
    assert "not measured" in row["x_EnergyMethod"] and "12 W/core" in row["x_EnergyMethod"]
