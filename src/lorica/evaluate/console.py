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
    first = evaluation["threats"][0]
    plain = [] if first["pgd"] is None else [f"PGD-{first['pgd']['steps']}"]
    table = Table("accuracy, %", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)  # which fits 80 columns
    for name in [*plain, *(attack["name"] for attack in first["autoattack"]["attacks"]), "worst case"]:
        table.add_column(escape(name), justify="right", no_wrap=True)
    table.add_row("natural", *[""] * (len(table.columns) - 2), escape(percent(evaluation["natural"])))
    for entry in evaluation["threats"]:
        rates = [] if entry["pgd"] is None else [entry["pgd"]["accuracy"]]
        rates += [attack["accuracy"] for attack in entry["autoattack"]["attacks"]]
        shown = [f"{100 * rate['value']:.1f}" for rate in rates]
        table.add_row(escape(entry["text"]), *shown, escape(percent(entry["robust"])))
    console.print(table)
    console.print("PGD stands alone; the others go on from left to right. Worst case: all of them, and smaller radii.")
    print_flags(evaluation["flags"])
    for note in evaluation["warnings"]:
        console.print(f"[yellow]note:[/] {escape(note)}")


def print_flags(flags: list[dict[str, Any]]) -> None:
    """A warning for each flag that is raised."""
    for flag in flags:
        if flag["raised"]:
            where = f"{flag['threat']}: " if flag["threat"] else ""
            console.print(f"[yellow]warning:[/] {escape(where + flag['problem'])}. {escape(flag['advice'])}")
