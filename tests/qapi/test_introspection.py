#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What query-qmp-schema tells of Merino agrees with what it tells of QEMU.

Every command and event of ours is walked side by side with QEMU's: members that both have must have
the same type and both be optional or not; members that only one side has must stand in the tables
below, with the reason.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Dict, List, Set, Tuple

from oracle import STORAGE_DAEMON, SYSTEM, Oracle, why_not
from qapi.build import load_schema
from qapi.model import (NOTHING, Alternate, Builtin, Command, Enum, Event, List_, Object, Schema,
                        Type)

SCHEMA = Path(__file__).resolve().parents[2] / 'qapi' / 'schema' / 'merino.json'
EXTENSION = 'merino-extension'

# What Merino has and QEMU 7.2 has not, besides what carries the feature merino-extension.
OURS_ALONE = {
    'BlockdevOptionsCbw.min-cluster-size': 'of QEMU 9.2',
    'NbdServerStartArgs.handshake-max-seconds': 'of QEMU 10.0',
}

# What QEMU 7.2 has and Merino has not: `TYPE.member`, `ENUM` for any of its values, `UNION branches`.
THEIRS_ALONE = {
    'BlockExportType': 'exports over other protocols',
    'BlockExportOptions branches': 'exports over other protocols',
    'BlockdevCreateOptions branches': 'other drivers',
    'BlockdevDriver': 'other drivers',
    'BlockdevOptions branches': 'other drivers',
    'BlockdevOptionsFile.aio-max-batch': 'no Linux AIO',
    'BlockdevOptionsFile.drop-cache': 'no live migration',
    'BlockdevOptionsFile.pr-manager': 'no persistent reservations',
    'BlockdevOptionsFile.x-check-cache-dropped': 'no live migration',
    'ImageInfoSpecific branches': 'other formats',
    'ImageInfoSpecificKind': 'other formats',
    'ImageInfoSpecificQCow2.encrypt': 'no encrypted images',
    'InetSocketAddress.mptcp': 'no multipath TCP',
    'JobType': 'other jobs',
    'ObjectOptions branches': 'other objects',
    'ObjectType': 'other objects',
    'SecretProperties.iv': 'no encrypted secrets',
    'SecretProperties.keyid': 'no encrypted secrets',
    'SecretProperties.loaded': 'which QEMU refuses, whatever its value',
    'TlsCredsPskProperties.loaded': 'which QEMU refuses, whatever its value',
    'TlsCredsX509Properties.loaded': 'which QEMU refuses, whatever its value',
    'TransactionAction branches': 'actions that start jobs or take snapshots',
    'TransactionActionKind': 'actions that start jobs or take snapshots',
}

Element = Dict[str, Any]


class Comparison:
    """Walks our schema beside the elements of theirs, and notes where they part."""

    def __init__(self, theirs: List[Element]) -> None:
        self.theirs = {element['name']: element for element in theirs}
        self.used: Set[str] = set()  # reasons of the tables that were needed
        self.problems: List[str] = []
        self._seen: Set[Tuple[str, str]] = set()

    def _excused(self, table: Dict[str, str], *names: str) -> bool:
        found = [name for name in names if name in table]
        self.used.update(found)
        return bool(found)

    def _note(self, where: str, text: str) -> None:
        self.problems.append(f'{where}: {text}')

    def _features(self, where: str, ours: List[str], theirs: Element) -> None:
        named = set(ours) - {EXTENSION}
        if named != set(theirs.get('features', [])):
            self._note(where, f"features {ours}, QEMU's {theirs.get('features', [])}")

    def _names(self, owner: str, ours: Dict[str, List[str]], theirs: Set[str]) -> None:
        """`ours`: names and their features."""
        for name, features in ours.items():
            if name not in theirs and EXTENSION not in features and not self._excused(
                    OURS_ALONE, f'{owner}.{name}', owner):
                self._note(f'{owner}.{name}', 'QEMU has no such thing')
        for name in sorted(theirs - set(ours)):
            if not self._excused(THEIRS_ALONE, f'{owner}.{name}', owner):
                self._note(f'{owner}.{name}', 'only QEMU has it')

    def _object(self, ours: Object, theirs: Element) -> None:
        members = {member['name']: member for member in theirs['members']}
        self._names(ours.name, {m.name: m.features for m in ours.members}, set(members))
        for member in ours.members:
            if other := members.get(member.name):
                where = f'{ours.name}.{member.name}'
                if member.optional != ('default' in other):
                    self._note(where, 'optional on one side only')
                self._features(where, member.features, other)
                self.types(where, member.type, other['type'])
        if (ours.tag.name if ours.tag else None) != theirs.get('tag'):
            self._note(ours.name, f"QEMU's tag is {theirs.get('tag')}")
        variants = {variant['case']: variant['type'] for variant in theirs.get('variants', [])}
        self._names(f'{ours.name} branches',
                    {branch.case: [EXTENSION] for branch in ours.branches}, set(variants))
        for branch in ours.branches:
            if branch.case in variants and branch.type is not NOTHING:
                self.types(f'{ours.name}/{branch.case}', branch.type, variants[branch.case])

    def _alternate(self, ours: Alternate, theirs: Element) -> None:
        others = {self._kind(member['type']): member['type'] for member in theirs['members']}
        mine = {self._our_kind(branch.type): branch.type for branch in ours.branches}
        self._names(ours.name, {kind: [] for kind in mine}, set(others))
        for kind in set(mine) & set(others):
            self.types(f'{ours.name}/{kind}', mine[kind], others[kind])

    def _kind(self, name: str) -> str:
        element = self.theirs[name]
        return str(element.get('json-type', element['meta-type']))

    @staticmethod
    def _our_kind(type_: Type) -> str:
        if isinstance(type_, Builtin):
            return str(type_.json)
        return 'array' if isinstance(type_, List_) else type(type_).__name__.lower()

    def types(self, where: str, ours: Type, name: str) -> None:
        if self._our_kind(ours) != self._kind(name):
            self._note(where, f"{self._our_kind(ours)}, QEMU's is {self._kind(name)}")
            return
        if isinstance(ours, List_):
            self.types(where, ours.element, self.theirs[name]['element-type'])
            return
        if isinstance(ours, Builtin) or (ours.name, name) in self._seen:
            return
        self._seen.add((ours.name, name))
        theirs = self.theirs[name]
        self._features(ours.name, ours.features, theirs)
        if isinstance(ours, Enum):
            others = {value['name']: value for value in theirs['members']}
            self._names(ours.name, {v.name: v.features for v in ours.values}, set(others))
            for value in ours.values:
                if value.name in others:
                    self._features(f'{ours.name}.{value.name}', value.features,
                                   others[value.name])
        elif isinstance(ours, Object):
            self._object(ours, theirs)
        else:
            self._alternate(ours, theirs)

    def entity(self, ours: Command | Event) -> None:
        theirs = self.theirs[ours.name]
        self._features(ours.name, ours.features, theirs)
        self.types(f'{ours.name} arguments', ours.arguments or NOTHING, theirs['arg-type'])
        if isinstance(ours, Command):
            self.types(f'{ours.name} result', ours.returns or NOTHING, theirs['ret-type'])


class Run:
    """The results, as TAP."""

    def __init__(self) -> None:
        self.count = 0
        self.failed = 0

    def result(self, name: str, problems: List[str]) -> None:
        self.count += 1
        self.failed += bool(problems)
        print(f"{'not ' if problems else ''}ok {self.count} - {name}")
        for problem in problems:
            print(f'# {problem}')


def compare(schema: Schema, theirs: List[List[Element]]) -> Run:
    """Each of ours against the first of QEMU's programs that has it; an extension, and nothing
    else, has none."""
    run = Run()
    comparisons = [Comparison(elements) for elements in theirs]
    for entity in schema.entities:
        if not isinstance(entity, (Command, Event)):
            continue
        comparison = next((c for c in comparisons if entity.name in c.theirs), None)
        extension = EXTENSION in entity.features
        if comparison is None:
            run.result(f'{entity.name}, our own' if extension else entity.name,
                       [] if extension else ['QEMU has no such thing'])
            continue
        comparison.problems = ["an extension that QEMU has"] if extension else []
        comparison.entity(entity)
        run.result(entity.name, comparison.problems)
    used = set().union(*(comparison.used for comparison in comparisons))
    stale = sorted({*OURS_ALONE, *THEIRS_ALONE} - used)
    run.result('every exception is needed', [f'{name} is not' for name in stale])
    return run


def main() -> int:
    programs = [STORAGE_DAEMON, SYSTEM]
    for argv in programs:
        if reason := why_not(argv[0]):
            print(f'1..0 # SKIP {reason}')
            return 0
    theirs: List[List[Element]] = []
    for argv in programs:
        with Oracle(argv) as oracle:
            theirs.append(oracle.ask('query-qmp-schema')['return'])
    run = compare(load_schema(str(SCHEMA)), theirs)
    print(f'1..{run.count}')
    return 1 if run.failed else 0


if __name__ == '__main__':
    sys.exit(main())
