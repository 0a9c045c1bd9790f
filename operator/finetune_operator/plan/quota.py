"""Whether the ResourceQuotas of a namespace admit all pods of a gang, computed as Kubernetes does.

An attempt is committed only where its whole gang is admitted now. Otherwise two jobs could each
create half of a gang under one quota, and wait for each other.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from finetune_api import reasons
from finetune_api.base import Object
from finetune_operator.plan.observe import Refusal

Amounts = dict[str, Decimal]
"""Quantities by the name of a resource, as a quota or a container names it."""

_POWERS = {"n": -9, "u": -6, "m": -3, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY = {"Ki": 1, "Mi": 2, "Gi": 3, "Ti": 4, "Pi": 5, "Ei": 6}  # powers of 1024
_NATIVE = ("cpu", "memory", "ephemeral-storage")
_NOTHING = Decimal(0)


@dataclass(frozen=True)
class Demand:
    """Pods that are to exist at once: their number, and one of them as the API server admits it."""

    pod: Object
    count: int


def parse(text: object) -> Decimal:
    """Parse a quantity of Kubernetes: 500m, 2Gi, 1e3. One that is not valid counts as nothing."""
    number = str(text)
    for suffix, power in _BINARY.items():
        if number.endswith(suffix):
            return _decimal(number.removesuffix(suffix)) * Decimal(1024) ** power
    if number[-1:] in _POWERS:
        return _decimal(number[:-1]).scaleb(_POWERS[number[-1]])
    return _decimal(number)


def _decimal(text: str) -> Decimal:
    try:
        found = Decimal(text)
    except InvalidOperation:
        return _NOTHING
    return found if found.is_finite() and abs(found.adjusted()) < 40 else _NOTHING


def written(resource: str, amount: Decimal) -> str:
    """Return a quantity in the form that Kubernetes prefers for this resource."""
    if amount != amount.to_integral_value():
        return f"{(amount * 1000).to_integral_value():f}m"
    if "memory" in resource or "storage" in resource or "hugepages" in resource:
        for suffix, power in reversed(_BINARY.items()):
            unit = Decimal(1024) ** power
            if amount and amount % unit == 0:
                return f"{(amount / unit).to_integral_value():f}{suffix}"
    return f"{amount.to_integral_value():f}"


def charges(pod: Object) -> Amounts:
    """Return what quotas charge for one pod, by the names that quotas use."""
    found: Amounts = {"pods": Decimal(1), "count/pods": Decimal(1)}
    for name, amount in _total(pod, "requests").items():
        if name in _NATIVE or name.startswith("hugepages-"):
            found[name] = amount
        found[f"requests.{name}"] = amount
    for name, amount in _total(pod, "limits").items():
        if name in _NATIVE:
            found[f"limits.{name}"] = amount
    return found


def _total(pod: Object, part: str) -> Amounts:
    """Return what the scheduler counts for a pod: requests or limits of all its containers.

    Init containers run one after the other, except sidecars, which go on.
    """
    spec = pod.get("spec", {})
    sidecars: Amounts = {}
    highest: Amounts = {}
    for container in spec.get("initContainers", []):
        own = _amounts(container, part)
        if container.get("restartPolicy") == "Always":
            sidecars = _sum(sidecars, own)
            own = {}
        highest = _most(highest, _sum(sidecars, own))
    total = sidecars
    for container in spec.get("containers", []):
        total = _sum(total, _amounts(container, part))
    total = _most(total, highest) | _amounts(spec, part)  # resources of the pod as a whole
    overhead = {name: parse(n) for name, n in spec.get("overhead", {}).items()}
    if part == "limits":
        overhead = {name: amount for name, amount in overhead.items() if name in total}
    return _sum(total, overhead)


def _amounts(owner: Object, part: str) -> Amounts:
    resources = owner.get("resources") or {}
    stated = dict(resources.get(part) or {})
    if part == "requests":  # A limit is the default of a request.
        stated = (resources.get("limits") or {}) | stated
    return {name: parse(quantity) for name, quantity in stated.items()}


def _sum(one: Amounts, other: Amounts) -> Amounts:
    return {n: one.get(n, _NOTHING) + other.get(n, _NOTHING) for n in {**one, **other}}


def _most(one: Amounts, other: Amounts) -> Amounts:
    return {n: max(one.get(n, _NOTHING), other.get(n, _NOTHING)) for n in {**one, **other}}


def applies(quota: Object, pod: Object) -> bool:
    """Return whether the scopes of a quota select a pod."""
    spec = quota.get("spec", {})
    scopes = [{"scopeName": name, "operator": "Exists"} for name in spec.get("scopes") or []]
    selector = spec.get("scopeSelector") or {}
    scopes += selector.get("matchExpressions") or []
    return all(_in_scope(scope, pod) for scope in scopes)


def _in_scope(scope: Object, pod: Object) -> bool:
    spec, name = pod.get("spec", {}), scope.get("scopeName")
    if name == "PriorityClass":
        return _matches(scope, spec.get("priorityClassName", ""))
    deadline = spec.get("activeDeadlineSeconds") is not None
    best_effort = not any(
        (container.get("resources") or {}).get(part, {}).get(resource)
        for container in [*spec.get("initContainers", []), *spec.get("containers", []), spec]
        for part in ("requests", "limits")
        for resource in ("cpu", "memory")
    )
    state = {
        "Terminating": deadline,
        "NotTerminating": not deadline,
        "BestEffort": best_effort,
        "NotBestEffort": not best_effort,
        "CrossNamespacePodAffinity": _crosses_namespaces(spec.get("affinity") or {}),
    }
    # A scope of a newer Kubernetes is left to the API server.
    return state.get(str(name), False)


def _matches(scope: Object, value: str) -> bool:
    values = scope.get("values") or []
    return {
        "In": value in values,
        "NotIn": value not in values,
        "Exists": bool(value),
        "DoesNotExist": not value,
    }.get(scope.get("operator", ""), False)


def _crosses_namespaces(affinity: Object) -> bool:
    terms: list[Object] = []
    for kind in ("podAffinity", "podAntiAffinity"):
        found = affinity.get(kind) or {}
        terms += found.get("requiredDuringSchedulingIgnoredDuringExecution") or []
        preferred = found.get("preferredDuringSchedulingIgnoredDuringExecution") or []
        terms += [term.get("podAffinityTerm", {}) for term in preferred]
    return any(
        term.get("namespaces") or term.get("namespaceSelector") is not None for term in terms
    )


def shortage(
    quotas: Iterable[Object], gang: Demand, ahead: Sequence[Demand] = (), *, ever: bool = False
) -> Refusal | None:
    """Return which quota does not admit all pods of a gang, or None.

    `ahead` are the pods that other jobs are about to create. With `ever`, what is used now does not
    count: the gang would not be admitted in an empty namespace either.
    """
    for quota in quotas:
        if not applies(quota, gang.pod):
            continue
        state = quota.get("status", {})
        hard = state.get("hard") or quota.get("spec", {}).get("hard") or {}
        used = {} if ever else state.get("used") or {}
        reserved = _needed([d for d in ahead if applies(quota, d.pod)])
        needed = _needed([gang])
        short = [
            name
            for name, limit in sorted(hard.items())
            if needed.get(name)
            and needed[name] + reserved.get(name, _NOTHING) + parse(used.get(name, 0))
            > parse(limit)
        ]
        if short:
            return _refusal(quota, gang.count, short, needed, reserved, used, hard)
    return None


def _needed(demands: Sequence[Demand]) -> Amounts:
    total: Amounts = {}
    for demand in demands:
        total = _sum(total, {n: amount * demand.count for n, amount in charges(demand.pod).items()})
    return total


def _refusal(
    quota: Object,
    pods: int,
    short: list[str],
    needed: Amounts,
    reserved: Amounts,
    used: Object,
    hard: Object,
) -> Refusal:
    name = quota["metadata"]["name"]
    requested = ",".join(f"{n}={written(n, needed[n])}" for n in short)
    parts = [f"exceeded quota: {name}, requested: {requested}"]
    if used:
        parts.append(f"used: {','.join(f'{n}={used.get(n, 0)}' for n in short)}")
    if waiting := [n for n in short if reserved.get(n)]:
        text = ",".join(f"{n}={written(n, reserved[n])}" for n in waiting)
        parts.append(f"about to be used by other jobs: {text}")
    parts.append(f"limited: {','.join(f'{n}={hard[n]}' for n in short)}")
    gang = "the pod" if pods == 1 else f"all {pods} pods"
    text = f"the API server would not admit {gang} of the gang: {', '.join(parts)}"
    if not used:
        return Refusal(reasons.QUOTA_EXCEEDED, f"{text}; raise the quota or use a smaller gang")
    return Refusal(reasons.QUOTA_EXCEEDED, f"{text}; waiting until the quota has room")
