"""Write the tables of docs/ from the registries: `python tools/docs_tables.py [--check]`."""

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from lorica.adapt import DEFENCES, OBJECTIVES, AdaptConfig
from lorica.audit import ATTACKS
from lorica.config import walk
from lorica.finetune import METHODS
from lorica.pretrain.methods import METHODS as PRETRAINING
from lorica.robustness.corruptions import CORRUPTIONS

DOCS = Path(__file__).parent.parent / "docs"


def attacks() -> str:
    lines = [
        "| attack | threat model | queries | needs | what it looks at | source |",
        "|---|---|---|---|---|---|",
    ]
    for name in ATTACKS:
        attack = ATTACKS[name]()
        needs = [what for what in ("caption", "base", "shadows") if getattr(attack, f"needs_{what}")]
        lines.append(
            f"| `{name}` | {attack.threat_model} | {attack.queries} | {', '.join(needs)} | {attack.summary} | "
            f"{attack.source} |"
        )
    return "\n".join(lines)


def objectives() -> str:
    lines = ["| objective | what it minimises | source |", "|---|---|---|"]
    return "\n".join(
        [*lines, *(f"| `{name}` | {OBJECTIVES[name].summary} | {OBJECTIVES[name].source} |" for name in OBJECTIVES)]
    )


def defences() -> str:
    """The registry, then the options of a run that are defences by themselves."""
    lines = ["| defence | what it does | options (default) | source |", "|---|---|---|---|"]
    for name in DEFENCES:
        fields = DEFENCES[name].Options.model_fields.items()
        options = ", ".join(f"`{key}` ({'none' if f.default is None else f.default})" for key, f in fields)
        lines.append(f"| `{name}` | {DEFENCES[name].summary} | {options} | {DEFENCES[name].source} |")
    leaves = dict(walk(AdaptConfig))
    for key in ("lora.dropout", "lora.rank", "weight_decay", "steps"):
        flag = key.replace(".", "-").replace("_", "-")
        lines.append(f"| no name: `--{flag}` | {leaves[key].description} | ({leaves[key].default}) | |")
    return "\n".join(lines)


def methods() -> str:
    return _with_options(METHODS, "what a step minimises")


def pretraining() -> str:
    return _with_options(PRETRAINING, "what a step learns from")


def _with_options(registry: Any, what: str) -> str:
    lines = [f"| method | {what} | options (default) | source |", "|---|---|---|---|"]
    for name in registry:
        fields = registry[name].Options.model_fields.items()
        options = ", ".join(f"`{key}` ({'none' if f.default is None else f.default})" for key, f in fields)
        lines.append(f"| `{name}` | {registry[name].summary} | {options} | {registry[name].source} |")
    return "\n".join(lines)


def corruptions() -> str:
    lines = ["| type | kind | what it does | definition |", "|---|---|---|---|"]
    for name in CORRUPTIONS:
        kind = CORRUPTIONS[name]
        lines.append(f"| `{name}` | {kind.category} | {kind.summary} | {kind.fidelity} |")
    return "\n".join(lines)


TABLES = {
    "attacks": attacks, "corruptions": corruptions, "defences": defences, "methods": methods, "objectives": objectives,
    "pretraining": pretraining,
}  # fmt: skip


def filled(text: str) -> str:
    """The page with every `<!-- table: NAME -->` ... `<!-- end -->` block written anew."""
    return re.sub(
        r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)",
        lambda m: f"{m[1]}{TABLES[m[2]]()}\n{m[3]}",
        text,
        flags=re.DOTALL,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 where a page is out of date")
    args = parser.parse_args()
    stale = [
        page
        for page in sorted(DOCS.glob("*.md"))
        if filled(page.read_text(encoding="utf-8")) != page.read_text(encoding="utf-8")
    ]
    for page in stale:
        print(f"{'out of date' if args.check else 'written'}: {page.name}")
        if not args.check:
            page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
    sys.exit(1 if args.check and stale else 0)


if __name__ == "__main__":
    main()
