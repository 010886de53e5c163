"""The licences that the hub knows by name: a card that claims another one is refused there.

Source: what the hub answers to a card with an unknown licence (2026).
"""

from __future__ import annotations

import re

KNOWN = frozenset(
    "apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m "
    "afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 "
    "cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 "
    "cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 "
    "cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl "
    "gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr "
    "mpl-2.0 odc-by odbl openmdw-1.0 openmdw-1.1 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl "
    "lgpl-lr deepfloyd-if-license fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 "
    "grok2-community gemma".split()
)
SAY_NOTHING = frozenset(("unknown", "none", "unlicensed"))
"""Entries in cards whose owner states no licence."""


def fields_of(identifier: str, name: str | None, link: str | None) -> dict[str, str]:
    """Return the fields of a card for one licence; one that the hub does not know is `other`, with its name."""
    if identifier in KNOWN:
        return {"license": identifier}
    said = name or (identifier if identifier != "other" else "")
    slug = re.sub(r"[^a-z0-9.-]+", "-", said.lower()).strip("-.")
    table = {"license": "other"}
    if slug:
        table["license_name"] = slug[:64]
    if link and re.fullmatch(r"https?://[^\s\"'<>]+|LICENSE[\w.-]*", link):
        table["license_link"] = link
    return table
