"""The recipes in docs/batch.md run as they stand there."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kills import MODEL, ROOT

from gbp import Explainer

DOCUMENT = (ROOT / "docs/batch.md").read_text()


def recipe(heading: str, model: str = "model.onnx") -> dict[str, Any]:
    """The names that the code under a heading defines."""
    code = re.search(rf"^## {heading}\n.*?```py\n(.*?)```", DOCUMENT, re.MULTILINE | re.DOTALL)
    assert code is not None
    names: dict[str, Any] = {}
    exec(code[1].replace("model.onnx", model), names)
    return names


@pytest.fixture(scope="module")
def explainer() -> Explainer:
    return Explainer(MODEL)


def test_dask(explainer: Explainer) -> None:
    da = pytest.importorskip("dask.array", reason="the recipe for Dask needs dask")
    x = np.random.default_rng(0).standard_normal((7, *explainer.input_shape[1:]), np.float32)
    blocks = da.from_array(x, chunks=(3, *x.shape[1:]))
    maps = recipe("On Dask")["explain_blocks"](blocks, str(MODEL))
    assert (maps.shape, maps.dtype) == (x.shape, np.float32)
    assert (maps.compute(scheduler="threads") == explainer.explain(x).map).all()


def test_spark(explainer: Explainer, tmp_path: Path) -> None:
    """The function that mapInPandas calls; Spark itself needs Java."""
    pd = pytest.importorskip("pandas", reason="the recipe for Spark needs pandas")
    names = recipe("On Spark", str(MODEL))
    paths = [str(ROOT / "models/demo.png")] * 3
    frames = [pd.DataFrame({"path": paths[:2]}, index=[5, 9]), pd.DataFrame({"path": paths[2:]})]
    rows = pd.concat(names["explain_frames"](iter(frames)))
    assert [column.split()[0] for column in names["SCHEMA"].split(", ")] == list(rows.columns)
    result = explainer.explain(paths[0])
    assert set(rows["label"]) == {result.top(1)[0][1]}
    assert set(rows["map"]) == {result.reduce().tobytes()}
    assert rows["path"].tolist() == paths


def test_spark_itself(explainer: Explainer, monkeypatch: pytest.MonkeyPatch) -> None:
    sql = pytest.importorskip("pyspark.sql", reason="mapInPandas needs pyspark, and Java")
    if shutil.which("java") is None:
        pytest.skip("Spark needs Java")
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    monkeypatch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
    names = recipe("On Spark", str(MODEL))
    paths = [str(path) for path in sorted((ROOT / "models/scenes").glob("*.png"))[:3]]
    settings = {"spark.ui.enabled": "false", "spark.sql.shuffle.partitions": "2"}
    spark = sql.SparkSession.builder.master("local[2]").config(map=settings).getOrCreate()
    try:
        frame = spark.createDataFrame([(path,) for path in paths], "path string").repartition(2)
        rows = {
            row["path"]: row for row in frame.mapInPandas(names["explain_frames"], names["SCHEMA"]).collect()
        }
    finally:
        spark.stop()
    assert set(rows) == set(paths)
    for path in paths:
        result = explainer.explain(path)
        _, label, score = result.top(1)[0]
        assert rows[path]["label"] == label
        assert rows[path]["score"] == pytest.approx(score)
        assert bytes(rows[path]["map"]) == result[0].reduce().tobytes()
