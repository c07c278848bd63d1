#!/usr/bin/env python3
"""Mutates visit records and compares the verdicts of `sallyport schemas check` with orjson and jsonschema-rs.

Usage: differential.py [--seed N] [--count N]; needs what `bench.py records` installs.
A disagreement is printed with its line; exit 1 when there is one that is not a known fault of the peer (its dates accept
a character other than a digit in places).
"""
import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile

import visits

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, ".build-bench"))
import jsonschema_rs  # noqa: E402
import orjson  # noqa: E402

VALUES = [0, -1, 1.0, 1e2, 5.0, 2.5, True, None, "", [], {}, "x" * 101, 10**30]
DATES = ["2000-02-29", "1900-02-29", "2000-2-01", "2000-13-01", "0000-01-01", "2000-01-32", "20000-01-01"]
TIMES = ["2026-01-01T00:00:00Z", "2026-01-01t00:00:00z", "2026-01-01T24:00:00Z", "2026-01-01T23:59:60Z", "2026-01-01T00:00:00+25:00",
         "2026-01-01T00:00:00.123456789-05:30", "2026-01-01 00:00:00Z", "2026-01-01T00:00Z"]
MAILS = ["a@b.c", "a@b", "@b.c", "a..b@c.d", '"a b"@c.d', "a@[127.0.0.1]", "a@-b.c", "a@b_c.d"]


def mutate_value(record, r):
    key = r.choice(list(record))
    kind = r.randrange(10)
    text = record[key] if isinstance(record[key], str) else ""
    place = r.randrange(len(text) + 1)
    if kind == 0:
        del record[key]
    elif kind == 1:
        record[key] = r.choice(VALUES)
    elif kind == 2:
        record[key] = text[:place] + r.choice(list("x0- é😀\"\\\n/TZ")) + text[place:]
    elif kind == 3:
        record[key] = text[:place] + text[place + 1:]
    elif kind == 4:
        record[f"extra{r.randrange(5)}"] = 1
    elif kind == 5:
        record["codes"] = [r.choice(["A1", "B2", "C3", 1, 1.0, True]) for _ in range(r.randrange(13))]
    elif kind == 6:
        record["severity"] = r.choice([0, 1, 5, 6, 1.0, 1.5, 5.000, -0.0, "3"])
    elif kind == 7:
        record["birthDate"] = r.choice(DATES)
    elif kind == 8:
        record["arrived"] = r.choice(TIMES)
    else:
        record["contact"] = {"email": r.choice(MAILS)}


def mutate_bytes(line, r):
    text = bytearray(line)
    for _ in range(r.randrange(1, 3)):
        place = r.randrange(len(text))
        kind = r.randrange(4)
        if kind == 0:
            text[place] = r.randrange(256)
        elif kind == 1:
            del text[place]
        elif kind == 2:
            text[place:place] = bytes([r.choice(b'{}[]":,\\u0deE+-. \t\x00\x01\x7f\xc3\xff')])
        else:
            other = r.randrange(len(text))
            text[place:place + 1] = text[other:other + r.randrange(1, 30)]
    return bytes(text).replace(b"\n", b" ")


def has_duplicate(line):
    found = []

    def pairs(items):
        if len({key for key, _ in items}) != len(items):
            found.append(True)
        return dict(items)

    try:
        json.loads(line, object_pairs_hook=pairs)
    except (ValueError, RecursionError):
        return False
    return bool(found)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=40000)
    options = parser.parse_args()
    r = random.Random(options.seed)
    schema = visits.json_schema()
    validator = jsonschema_rs.validator_for(schema, validate_formats=True)
    lines, expected = [], []
    for _ in range(options.count):
        record = visits.nested(visits.visit(r), r)
        if r.random() < 0.7:
            for _ in range(r.randrange(0, 3)):
                mutate_value(record, r)
            line = json.dumps(record, ensure_ascii=r.random() < 0.5).encode()
        else:
            line = mutate_bytes(json.dumps(record, ensure_ascii=False).encode(), r)
        lines.append(line)
        try:
            expected.append(not line.strip() or (validator.is_valid(orjson.loads(line)) and not has_duplicate(line)))
        except orjson.JSONDecodeError:
            expected.append(False)
    with tempfile.TemporaryDirectory() as directory:
        data, rules = os.path.join(directory, "mutated.ndjson"), os.path.join(directory, "schema.json")
        with open(data, "wb") as file:
            file.write(b"\n".join(lines) + b"\n")
        with open(rules, "w") as file:
            json.dump(schema, file)
        binary = os.path.join(ROOT, ".build-release", "release", "sallyport")
        output = subprocess.run([binary, "schemas", "check", data, "--schema", rules, "--json", "--limit", "10000000"], stdout=subprocess.PIPE).stdout
    refused = {row["line"] for row in map(json.loads, output.splitlines()) if "line" in row}
    faults = 0
    for number, (line, isValid) in enumerate(zip(lines, expected), 1):
        if isValid == (number not in refused):
            continue
        known = isValid and re.search(rb'"(birthDate|arrived|left)": "[^"]*[^-0-9TtZz:.+"][^"]*"|"(birthDate|arrived|left)": "\d*-\d-\d', line)
        faults += 0 if known else 1
        print(f"line {number}: peer {'valid' if isValid else 'invalid'}{', its known fault' if known else ''}: {line[:400]!r}")
    print(f"{len(lines)} lines, {expected.count(False)} invalid, {faults} disagreements (seed {options.seed})")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
