"""Spark: the one session of a stage process, its settings, and the Spark form of the tables' columns.

With a running platform (or a cluster) the process is a light Spark Connect client; without one it starts its own local JVM.
Change here: engine settings. Not here: addresses and memory (infra/env/*.toml), rows (jobs/stages), columns (expectations/tables.py).
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from jobs.contract import MoelineError
from jobs.environment import REPO, Environment
from jobs.services import table_store

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.types import DataType, StructType

    from expectations.tables import Table

JARS = REPO / ".jars"  # the Delta JARs, resolved once by `make`


def spark_conf(env: Environment) -> dict[str, str]:
    """Every Spark setting of a local engine, for a session of its own and for the platform's Spark Connect server alike.

    Raises MoelineError when the Delta JARs have not been resolved.
    """
    jars = sorted(JARS.glob("*.jar"))
    if not any("delta-spark_" in jar.name for jar in jars):
        raise MoelineError(f"Spark was asked to start, but {JARS.name}/ in the checkout holds no Delta JARs. Run `make setup` to resolve them once.")
    services = env.services
    return {
        "spark.master": f"local[{services.get('spark_cores', 2)}]",
        "spark.jars": ",".join(map(str, jars)),
        "spark.driver.memory": str(services.get("spark_driver_memory", "2g")),
        # Unpacked native libraries and artifacts of a killed JVM stay where `moeline gc` finds them, not in everybody's temporary folder.
        "spark.driver.extraJavaOptions": f'{services.get("spark_java_options", "")} "-Djava.io.tmpdir={env.home / "spark" / "local"}"'.strip(),
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        # Or anybody on the machine could read and write blocks; a local engine makes its own secret (Spark's security page).
        "spark.authenticate": "true",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.log.level": "ERROR",
        "spark.local.dir": str(env.home / "spark" / "local"),
        "spark.sql.warehouse.dir": str(env.home / "spark" / "warehouse"),
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
        # Delta reads its log with 50 tasks and Spark shuffles with 200 by default: seconds per query on small tables.
        "spark.databricks.delta.snapshotPartitions": "2",
        "spark.sql.shuffle.partitions": str(services.get("spark_shuffle_partitions", 4)),
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.execution.arrow.pyspark.enabled": "true",
        # A batch is held by a Python worker in several forms at once; documents may be megabytes long.
        "spark.sql.execution.arrow.maxBytesPerBatch": str(32 << 20),
        "spark.sql.execution.pyspark.python": sys.executable,
        **table_store.hadoop_settings(env),
    }


def spark_environment(env: Environment) -> dict[str, str]:
    """Environment variables of the JVM that runs the Python workers: this interpreter, this checkout, loopback, no hidden threads."""
    paths = [str(REPO), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {
        "PYSPARK_PYTHON": sys.executable,
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        "SPARK_LOCAL_IP": "127.0.0.1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
        **table_store.jvm_variables(env),
    }


def session(env: Environment, app_name: str) -> SparkSession:
    """The Spark session of this process: a Connect client when the environment has a ``spark_remote``, else a local one.

    The address may carry a token (``sc://host:port/;token=...``). Raises MoelineError when the server does not answer.
    """
    remote = env.platform.get("spark_remote")
    spark = _connect(str(remote)) if remote else _start_local(env, app_name)
    _ship_code_by_value()
    return spark


def _connect(remote: str) -> SparkSession:
    from pyspark.errors import PySparkException
    from pyspark.sql import SparkSession

    address = remote.split("/;", maxsplit=1)[0]  # what follows may be a secret
    try:
        spark = SparkSession.builder.remote(remote).getOrCreate()
        spark.version  # noqa: B018 - the first call that reaches the server
    except PySparkException as error:
        reason = str(error).splitlines()[0]
        raise MoelineError(f"The Spark Connect server at {address} does not answer ({reason}). See `moeline status`; `moeline up` starts it.") from None
    return spark


def _start_local(env: Environment, app_name: str) -> SparkSession:
    from pyspark.sql import SparkSession

    os.environ.update(spark_environment(env))
    (env.home / "spark" / "local").mkdir(parents=True, exist_ok=True)
    builder = SparkSession.builder.appName(app_name)
    for key, value in spark_conf(env).items():
        builder = builder.config(key, value)
    return builder.getOrCreate()


def _ship_code_by_value() -> None:
    """Send the functions of stages to the workers themselves instead of their names.

    Workers outlive a stage on a running server: by name they would go on executing the code as it was when they first imported it.
    """
    from pyspark import cloudpickle

    import jobs

    cloudpickle.register_pickle_by_value(jobs)


def read_table(spark: SparkSession, uri: str, version: int) -> DataFrame:
    """Exactly one version of a Delta table."""
    return spark.read.format("delta").option("versionAsOf", version).load(uri)


def _spark_type(name: str) -> DataType:
    from pyspark.sql import types as t

    simple = {
        "string": t.StringType, "int64": t.LongType, "int32": t.IntegerType, "float64": t.DoubleType, "bool": t.BooleanType,
        "binary": t.BinaryType, "timestamp": t.TimestampType,
    }  # fmt: skip
    if name.startswith("list<") and name.endswith(">"):
        return t.ArrayType(_spark_type(name[5:-1]))
    return simple[name]()


def rows_schema(table: Table) -> StructType:
    """The Spark schema of a table of expectations/tables.py. Nullability is a checked rule, not a schema flag."""
    from pyspark.sql.types import StructField, StructType

    return StructType([StructField(c.name, _spark_type(c.type)) for c in table.columns])


def cast_to_table(df: DataFrame, table: Table, partition: str | None = None) -> DataFrame:
    """The columns of ``table``, in its order and types; ``partition`` fills a partition column the rows do not have.

    Raises MoelineError naming missing and unknown columns: a column that silently disappears is a wrong result.
    """
    from pyspark.sql import functions as f

    if partition is not None and table.partition not in df.columns:
        df = df.withColumn(table.partition, f.lit(partition))
    missing = [c for c in table.column_names if c not in df.columns]
    unknown = [c for c in df.columns if c not in table.column_names]
    if missing or unknown:
        raise MoelineError(
            f"Rows for table {table.name} lack the columns {missing} and have unknown columns {unknown}. "
            f"It has {', '.join(table.column_names)} (expectations/tables.py)."
        )
    return df.select([f.col(c.name).cast(_spark_type(c.type)).alias(c.name) for c in table.columns])
