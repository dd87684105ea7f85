"""The main job, small: every part runs and the table holds what was measured."""

import json
from pathlib import Path

import pytest

from lorica.demo import DemoConfig, run
from lorica.errors import LoricaError


def test_the_demo_writes_audits_pictures_and_a_report_and_goes_on_where_it_was(tmp_path):
    methods = {name: DemoConfig().methods[name] for name in ("LoRA", "SMP-LoRA (strong proxy)")}
    config = DemoConfig(
        methods=methods,
        output=tmp_path / "demo",
        members=8,
        nonmembers=8,
        pictures=8,
        steps=2,
        batch_size=2,
        shadows=2,
        device="cpu",
    )
    result = run(config)
    assert [row["method"] for row in result["rows"]] == ["Base model", *config.methods]
    for row in result["rows"][1:]:
        assert 0 <= row["auc"]["low"] <= row["auc"]["value"] <= row["auc"]["high"] <= 1
        assert row["kid"]["value"] is not None
    audited = json.loads((tmp_path / "demo" / "lora" / "audit" / "audit.json").read_text())
    assert audited["target"]["shadows"] == 2 and set(audited["attacks"]) == {*config.attacks, "lira", "rmia", "gsa"}
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "SMP-LoRA" in page
    weights = (tmp_path / "demo" / "smp-lora-strong-proxy" / "pytorch_lora_weights.safetensors").read_bytes()
    again = run(config)
    assert again["rows"] == result["rows"]
    assert (tmp_path / "demo" / "smp-lora-strong-proxy" / "pytorch_lora_weights.safetensors").read_bytes() == weights
    assert json.loads((tmp_path / "demo" / "demo.json").read_text())["rows"] == json.loads(json.dumps(result["rows"]))


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"methods": {"fine": {}, "typo": {"objective": "smp-lra"}}}, "method 'typo': `objective` = 'smp-lra'"),
        ({"methods": {"fine": {}, "typo": {"stesp": 3}}}, "method 'typo': unknown key `stesp`"),
        ({"methods": {"LoRA!": {}, "lora": {}}}, "method 'lora' would share the folder lora with 'LoRA!'"),
        ({"methods": {"Base": {}}}, "method 'Base' would share the folder base"),
        ({"methods": {"???": {}}}, "'???'"),
        ({"attacks": ["loss", "lost"]}, "unknown attack 'lost'"),
    ],
)
def test_what_is_wrong_with_any_method_is_said_before_work_starts(
    changed: dict[str, object], named: str, tmp_path: Path
) -> None:
    output = tmp_path / "demo"
    with pytest.raises(LoricaError) as error:
        run(DemoConfig(output=output, **changed))
    assert named in str(error.value) and not output.exists()
