"""An evaluation on the terminal."""

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from lorica.evaluate.verdict import percent
from lorica.progress import console


def print_evaluation(evaluation: dict[str, Any]) -> None:
    """The verdict, accuracy after each attack at each radius, corruptions, and what to be careful about."""
    console.print(f"[bold]{escape(evaluation['verdict']['text'])}[/]")
    table = Table("accuracy", *(escape(entry["text"]) for entry in evaluation["threats"]), box=SIMPLE_HEAD)
    table.add_row("natural", *[escape(percent(evaluation["natural"]))] * len(evaluation["threats"]))
    rows: dict[str, list[str]] = {}
    for entry in evaluation["threats"]:
        if entry["pgd"] is not None:
            rows.setdefault(f"PGD-{entry['pgd']['steps']}", []).append(percent(entry["pgd"]["accuracy"]))
        for attack in entry["autoattack"]["attacks"]:
            rows.setdefault(f"after {attack['name']}", []).append(percent(attack["accuracy"]))
        rows.setdefault("worst case", []).append(percent(entry["robust"]))
    for name, cells in rows.items():
        table.add_row(name, *map(escape, cells))
    console.print(table)
    for flag in evaluation["flags"]:
        if flag["raised"]:
            where = f"{flag['threat']}: " if flag["threat"] else ""
            console.print(f"[yellow]warning:[/] {escape(where + flag['problem'])}. {escape(flag['advice'])}")
    for note in evaluation["warnings"]:
        console.print(f"[yellow]note:[/] {escape(note)}")
