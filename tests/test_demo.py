"""The main job, small: every part runs and the table holds what was measured."""

import json

from lorica.demo import DemoConfig, run


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
        device="cpu",
    )
    result = run(config)
    assert [row["method"] for row in result["rows"]] == ["Base model", *config.methods]
    for row in result["rows"][1:]:
        assert 0 <= row["auc"]["low"] <= row["auc"]["value"] <= row["auc"]["high"] <= 1
        assert row["kid"]["value"] is not None
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "SMP-LoRA" in page
    weights = (tmp_path / "demo" / "smp-lora-strong-proxy" / "pytorch_lora_weights.safetensors").read_bytes()
    again = run(config)
    assert again["rows"] == result["rows"]
    assert (tmp_path / "demo" / "smp-lora-strong-proxy" / "pytorch_lora_weights.safetensors").read_bytes() == weights
    assert json.loads((tmp_path / "demo" / "demo.json").read_text())["rows"] == json.loads(json.dumps(result["rows"]))
