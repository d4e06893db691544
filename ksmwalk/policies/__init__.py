"""Policies for `host.ksm.policy`: the base to write one's own on, and those of others, as their authors published them."""

from __future__ import annotations

from ..ksm.policy import Area, Policy, TablePages
from .before import BeforeThePatch
from .domains import ByDomain
from .hot import SkipHot
from .linux import Linux
from .request import OnRequest
from .sampling import Sampling

__all__ = ["POLICIES", "Area", "BeforeThePatch", "ByDomain", "Linux", "OnRequest", "TablePages", "Policy", "Sampling", "SkipHot"]

#: those that come with ksmwalk, by name
POLICIES: dict[str, type[Policy]] = {
    policy.name: policy for policy in (Linux, BeforeThePatch, ByDomain, Sampling, SkipHot, OnRequest)
}
