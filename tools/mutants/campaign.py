"""Mutation testing of fxenorm: see README.md beside this file."""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from fnmatch import fnmatch
from pathlib import Path

from copied import ROOT, copied_tree
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import TestOutcome, WorkerOutcome, WorkItem, WorkResult
from forked import import_slow_modules
from judge import Judge, Verdict
from reach import DOCTESTS, Reach, digest_of_tests, record
from report import SURVIVED, all_judged, judged, survivors, table
from session import draw, find, folder_of
from table import IN_OTHER_PROCESSES, QUOTAS, TESTS, WIDER
from unreached import unreached


def _test_files() -> list[str]:
    return list(dict.fromkeys([*WIDER, DOCTESTS, *(name for row in TESTS.values() for name in row)]))


def reach(arguments: argparse.Namespace) -> None:
    """Record which lines each test of the table reaches; only for test files that have no record, or have changed."""
    folder = arguments.state / "reach"
    folder.mkdir(parents=True, exist_ok=True)
    import_slow_modules()
    with copied_tree() as copy:
        for name in arguments.files or _test_files():
            known = folder / f"{name}.json.gz"
            test_file = digest_of_tests(copy, name)
            if not arguments.files and (
                name in IN_OTHER_PROCESSES or (known.exists() and Reach.read(known).test_file == test_file)
            ):
                continue
            start = time.monotonic()
            found = record(copy, name, folder, arguments.new)
            told = "no record, see its log" if found is None else f"{len(found.seconds)} tests, {len(found.failed)} failed"
            print(f"{name}: {told}, {time.monotonic() - start:.0f} s", flush=True)


def _quota(text: str) -> tuple[str, int]:
    folder, _, count = text.partition("=")
    return folder, int(count)


def draw_sample(arguments: argparse.Namespace) -> None:
    """Draw a random sample of mutants; a larger sample of the same seed holds the smaller one."""
    arguments.state.mkdir(parents=True, exist_ok=True)
    quotas = {folder: round(part * arguments.sample) for folder, part in QUOTAS.items()} | dict(arguments.quota)
    with use_db(arguments.session) as session:
        added = draw(ROOT, session, arguments.sample, arguments.seed, quotas, arguments.only)
        print(f"{added} mutants drawn, the session holds {session.num_work_items}, {session.num_results} of them judged")


def _pending(session: WorkDB, arguments: argparse.Namespace) -> list[WorkItem]:
    pending = list(session.pending_work_items)
    if arguments.survivors:
        for item, result in session.completed_work_items:
            one = judged(item, result)
            if one is not None and one.verdict == SURVIVED:
                pending.append(item)
    if arguments.only:
        folders = {item.job_id: folder_of(item.mutations[0].module_path.as_posix()) for item in pending}
        pending = [item for item in pending if any(fnmatch(folders[item.job_id], one) for one in arguments.only)]
    # A folder's first mutants before another's second: whenever the run is stopped, each folder has its share.
    return sorted(pending, key=lambda item: (item.mutations[0].operator_args["place"], item.job_id))


def _who(verdict: Verdict) -> str:
    """The test that failed, or what else noticed."""
    found = re.search(r"^(?:FAILED|ERROR) (\S+)", verdict.said, re.M)
    return found[1] if found and not verdict.by_limit else f"{verdict.noticed_by}, {verdict.said[:30]}"


def run(arguments: argparse.Namespace) -> None:
    """Judge the mutants of the session that have no verdict yet; stop with Ctrl-C and go on with the same command."""
    end = time.monotonic() + 60.0 * arguments.minutes
    import_slow_modules()
    with copied_tree() as copy, use_db(arguments.session, WorkDB.Mode.open) as session:
        judge = Judge(copy, arguments.state, arguments.seconds)
        unknown = [name for name in _test_files() if name not in (DOCTESTS, *IN_OTHER_PROCESSES) and judge.reach_of(name) is None]
        if unknown:
            print(f"left out, as `reach` has recorded nothing of them: {', '.join(unknown)}", flush=True)
        for item in _pending(session, arguments):
            if time.monotonic() > end:
                break
            drawn, start = find(copy, item), time.monotonic()
            if drawn is None:
                session.set_result(item.job_id, WorkResult(WorkerOutcome.SKIPPED, "its lines are no longer there"))
                continue
            verdict = judge.judge(drawn)
            if verdict is None:
                session.set_result(item.job_id, WorkResult(WorkerOutcome.SKIPPED, "it does not build"))
                print(f"does not build: {drawn.path}:{drawn.position[0]}", flush=True)
                continue
            outcome = TestOutcome.KILLED if verdict.noticed_by else TestOutcome.SURVIVED
            output = f"{verdict.noticed_by}\n{verdict.said}" if verdict.noticed_by else f"{verdict.reached_by} tests reach it"
            session.set_result(item.job_id, WorkResult(WorkerOutcome.NORMAL, output, outcome, drawn.changed))
            told = f"noticed by {_who(verdict)}" if verdict.noticed_by else "SURVIVED"
            changed = " ".join(drawn.changed.splitlines())
            print(f"{told} ({time.monotonic() - start:.0f} s) {drawn.path}:{drawn.position[0]} {changed[:200]}", flush=True)


def report(arguments: argparse.Namespace) -> None:
    """Print the table by folder, then each survivor with its diff."""
    with use_db(arguments.session, WorkDB.Mode.open) as session:
        found = all_judged(session)
    print(table(found), survivors(found), sep="\n\n")


def lines(arguments: argparse.Namespace) -> None:
    """Print the branch coverage by folder of all tests whose reach is recorded, and what none of them reaches."""
    print(unreached(ROOT, arguments.state / "reach", arguments.files))


def main() -> None:
    """Read the command line and do what it says."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("MPLBACKEND", "agg")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state", type=Path, default=ROOT / "build" / "mutants", help="where records and sessions are kept")
    parser.add_argument("--session", default="session", help="the session's name")
    commands = parser.add_subparsers(required=True)

    command = commands.add_parser("reach", help=reach.__doc__)
    command.add_argument("files", nargs="*", help="test files, as test_field; all that need it if none is named")
    command.add_argument("--new", action="store_true", help="only tests that have no record; those of the others stay")
    command.set_defaults(call=reach)

    command = commands.add_parser("draw", help=draw_sample.__doc__)
    command.add_argument("--sample", type=int, default=200, help="how many mutants the session shall hold")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--quota", type=_quota, action="append", default=[], metavar="FOLDER=N", help="so many of this folder")
    command.add_argument("--only", action="append", default=[], metavar="FOLDER", help="only these folders, as patterns")
    command.set_defaults(call=draw_sample)

    command = commands.add_parser("run", help=run.__doc__)
    command.add_argument("--minutes", type=float, default=float("inf"), help="begin no mutant after so many minutes")
    command.add_argument("--only", action="append", default=[], metavar="FOLDER", help="only these folders, as patterns")
    command.add_argument("--seconds", type=float, default=60.0, help="of each test file, at most so many seconds of tests")
    command.add_argument("--survivors", action="store_true", help="judge survivors again: tests or sources have changed")
    command.set_defaults(call=run)

    command = commands.add_parser("report", help=report.__doc__)
    command.set_defaults(call=report)

    command = commands.add_parser("lines", help=lines.__doc__)
    command.add_argument("files", nargs="*", help="patterns on paths inside fxenorm/, as 'symmetry/*'")
    command.set_defaults(call=lines)

    arguments = parser.parse_args()
    arguments.session = arguments.state / f"{arguments.session}.sqlite"
    code = 0
    try:
        arguments.call(arguments)
    except KeyboardInterrupt:
        code = 130
    sys.stdout.flush()
    os._exit(code)  # Triton, which torch imports, complains at an ordinary end


if __name__ == "__main__":
    main()
