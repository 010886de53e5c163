"""Models saved before the room was renamed name their class by its old address."""

from __future__ import annotations


def test_the_old_address_leads_to_the_class() -> None:
    import taskmerge
    from taskmerge.omni.embedder import OmniEmbedder

    assert OmniEmbedder is taskmerge.OmniEmbedder
