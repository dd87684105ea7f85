"""Which members an attacker would name first."""

from pathlib import Path

import numpy as np
from PIL import Image

from lorica.artefacts import write_json, write_text
from lorica.audit.exposure import most_exposed, write_thumbnails
from lorica.audit.score import MembershipScores
from lorica.data import read_folder, write_cohort
from lorica.report import ReportRun, build, load_run
from synthetic_audit import LORA, audit


def test_members_are_listed_by_how_few_nonmembers_score_as_high() -> None:
    scores = MembershipScores([0.5, 9.0, 3.0, 3.5, -1.0], [0.0, 1.0, 2.0, 3.0])
    assert most_exposed(scores) == [{"index": 1, "fpr": 0.0}, {"index": 3, "fpr": 0.0}, {"index": 2, "fpr": 0.25}]
    assert most_exposed(scores, listed=1) == [{"index": 1, "fpr": 0.0}]


def test_an_inverted_attack_exposes_the_members_that_score_lowest() -> None:
    scores = MembershipScores([-5.0, 0.5, -7.0], np.arange(10.0))
    assert [one["index"] for one in most_exposed(scores)] == [2, 0, 1]
    assert most_exposed(scores)[0]["fpr"] == 0.0


def test_the_page_names_exposed_members_by_place_and_shows_pictures_only_where_there_are_thumbnails(
    tmp_path: Path,
) -> None:
    result = audit(LORA)
    worst = ReportRun("LoRA", result).worst
    result["exposed"] = {worst: [{"index": 7, "fpr": 0.0}, {"index": 3, "fpr": 0.125}, "damaged", {"index": None}]}
    page = build([ReportRun("LoRA", result)], title="t", command="c", output=tmp_path / "a.html").read_text()
    assert "Most exposed members" in page and "12.5%" in page and 'alt="test member 7"' not in page
    assert "lorica audit --thumbnails" in page
    Image.new("RGB", (96, 96)).save(tmp_path / "00007.png")
    run = ReportRun("LoRA", result, thumbnails={7: tmp_path / "00007.png"})
    page = build([run], title="t", command="c", output=tmp_path / "b.html").read_text()
    assert 'alt="test member 7"' in page and 'alt="test member 3"' not in page


def test_thumbnails_are_written_only_where_asked_for_and_those_of_an_earlier_audit_go(tmp_path: Path) -> None:
    members = read_folder(write_cohort(tmp_path / "people", 3, seed=0))
    found = {"loss": [{"index": 2, "fpr": 0.0}], "mc-loss": [{"index": 0, "fpr": 0.1}]}
    write_thumbnails(tmp_path, found, members, wanted=True)
    assert sorted(file.name for file in (tmp_path / "exposed").iterdir()) == ["member_00000.png", "member_00002.png"]
    write_json(tmp_path / "audit.json", audit(LORA))
    assert sorted(load_run(tmp_path).thumbnails) == [0, 2]
    write_thumbnails(tmp_path, found, members, wanted=False)
    assert not (tmp_path / "exposed").exists() and not load_run(tmp_path).thumbnails


def test_what_a_user_keeps_where_thumbnails_go_stays(tmp_path: Path) -> None:
    own = tmp_path / "exposed" / "photo.png"
    write_text(own, "mine")
    write_thumbnails(tmp_path, {}, [], wanted=False)
    assert own.read_text() == "mine"
