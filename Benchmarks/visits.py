"""Synthetic visit records, the same in NDJSON, CSV and XML, with their schemas. Nobody in them exists."""
import csv
import json
import os
import random

COLUMNS = ["id", "patientId", "given", "family", "birthDate", "sex", "email", "phone", "street", "postcode", "city", "country",
           "clinic", "arrived", "left", "diagnosis", "severity", "cost", "insured", "notes"]
PATTERNS = {"id": "[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-8[0-9a-f]{3}-[0-9a-f]{12}", "patientId": "P[0-9]{9}", "phone": "\\+[0-9]{6,15}",
            "postcode": "[0-9]{5}", "clinic": "CL[0-9]{4}", "diagnosis": "[A-G][0-9]{2}\\.[0-9]"}
SEXES = ["female", "male", "other", "unknown"]
COUNTRIES = ["DE", "FR", "EE"]


def visit(r):
    return {
        "id": "%08x-%04x-4%03x-8%03x-%012x" % (r.getrandbits(32), r.getrandbits(16), r.getrandbits(12), r.getrandbits(12), r.getrandbits(48)),
        "patientId": "P%09d" % r.randrange(10**9), "given": r.choice(["Ann", "Björn", "Chloé", "Dmitri"]), "family": "Family%d" % r.randrange(10000),
        "birthDate": "19%02d-%02d-%02d" % (r.randrange(100), r.randrange(1, 13), r.randrange(1, 29)), "sex": r.choice(SEXES),
        "email": "user%d@mail.example.org" % r.randrange(10**6), "phone": "+49%09d" % r.randrange(10**9), "street": "Street %d" % r.randrange(200),
        "postcode": "%05d" % r.randrange(10**5), "city": "City", "country": r.choice(COUNTRIES), "clinic": "CL%04d" % r.randrange(10**4),
        "arrived": "2026-%02d-%02dT%02d:%02d:00Z" % (r.randrange(1, 13), r.randrange(1, 29), r.randrange(24), r.randrange(60)),
        "left": "2026-11-21T10:00:00Z", "diagnosis": "%s%02d.%d" % (r.choice("ABCDEFG"), r.randrange(100), r.randrange(10)),
        "severity": r.randrange(1, 6), "cost": round(r.random() * 10000, 2), "insured": r.choice([True, False]),
        "notes": 'Some "quoted" notes, with\nlines and text that goes on for a while ' * r.randrange(1, 4)}


def nested(row, r):
    """The record as JSON has it."""
    record = dict(row)
    record["contact"] = {key: record.pop(key) for key in ("email", "phone")}
    record["address"] = {key: record.pop(key) for key in ("street", "postcode", "city", "country")}
    record["codes"] = [r.choice(["A1", "B2", "C3", "D4"]) + str(n) for n in range(r.randrange(0, 5))]
    record["notes"] = record["notes"].replace('"', "'").replace("\n", " ")
    return record


def json_schema():
    def pattern(name):
        return {"type": "string", "pattern": f"^{PATTERNS[name]}$"}

    name = {"type": "string", "minLength": 1, "maxLength": 80}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object", "additionalProperties": False,
        "required": ["id", "patientId", "birthDate", "sex", "arrived"],
        "properties": {
            "id": pattern("id"), "patientId": pattern("patientId"), "given": {"$ref": "#/$defs/name"}, "family": {"$ref": "#/$defs/name"},
            "birthDate": {"type": "string", "format": "date"}, "sex": {"enum": SEXES},
            "contact": {"type": "object", "additionalProperties": False,
                        "properties": {"email": {"type": "string", "format": "email"}, "phone": pattern("phone")}},
            "address": {"type": "object", "additionalProperties": False, "required": ["city"],
                        "properties": {"street": {"type": "string", "maxLength": 100}, "postcode": pattern("postcode"),
                                       "city": {"type": "string", "minLength": 1}, "country": {"enum": COUNTRIES}}},
            "clinic": pattern("clinic"), "arrived": {"type": "string", "format": "date-time"}, "left": {"type": "string", "format": "date-time"},
            "diagnosis": pattern("diagnosis"), "severity": {"type": "integer", "minimum": 1, "maximum": 5}, "cost": {"type": "number", "minimum": 0},
            "insured": {"type": "boolean"}, "notes": {"type": "string", "maxLength": 2000},
            "codes": {"type": "array", "uniqueItems": True, "maxItems": 10, "items": {"type": "string", "minLength": 2, "maxLength": 8}}},
        "$defs": {"name": name}}


def table_schema():
    kinds = {"severity": "integer", "cost": "number", "insured": "boolean", "birthDate": "date", "arrived": "datetime", "left": "datetime"}
    fields = []
    for name in COLUMNS:
        field = {"name": name, "type": kinds.get(name, "string"), "constraints": {}}
        if name == "email":
            field["format"] = "email"
        if name in PATTERNS:
            field["constraints"]["pattern"] = PATTERNS[name]
        if name in ("sex", "country"):
            field["constraints"]["enum"] = SEXES if name == "sex" else COUNTRIES
        if name == "severity":
            field["constraints"].update(minimum=1, maximum=5)
        if name in ("id", "patientId"):
            field["constraints"]["required"] = True
        fields.append(field)
    return {"fields": fields}


def xsd():
    kinds = {"severity": "xs:int", "cost": "xs:decimal", "birthDate": "xs:date", "arrived": "xs:dateTime", "left": "xs:dateTime", "insured": "xs:boolean"}
    elements = ""
    for name in COLUMNS[1:]:
        if name in PATTERNS:
            elements += (f'<xs:element name="{name}"><xs:simpleType><xs:restriction base="xs:string">'
                         f'<xs:pattern value="{PATTERNS[name]}"/></xs:restriction></xs:simpleType></xs:element>')
        else:
            elements += f'<xs:element name="{name}" type="{kinds.get(name, "xs:string")}"/>'
    return ('<xs:schema xmlns:xs="http://www.w3.org/2001/XMLSchema"><xs:element name="visits"><xs:complexType><xs:sequence>'
            '<xs:element name="visit" minOccurs="0" maxOccurs="unbounded"><xs:complexType><xs:sequence>' + elements +
            '</xs:sequence><xs:attribute name="id" type="xs:string"/></xs:complexType></xs:element></xs:sequence></xs:complexType></xs:element></xs:schema>')


def write(directory, count, seed=1):
    """visits.ndjson, visits.csv, visits.xml (a quarter of the records) and their schemas."""
    r = random.Random(seed)
    place = lambda name: os.path.join(directory, name)
    with open(place("visits.ndjson"), "w") as lines, open(place("visits.csv"), "w", newline="") as table, open(place("visits.xml"), "w") as xml:
        rows = csv.writer(table, lineterminator="\r\n")
        rows.writerow(COLUMNS)
        xml.write("<visits>\n")
        for number in range(count):
            row = visit(r)
            texts = {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in row.items()}
            rows.writerow([texts[key] for key in COLUMNS])
            lines.write(json.dumps(nested(row, r), ensure_ascii=False) + "\n")
            if number % 4 == 0:
                xml.write(f'<visit id="{row["id"]}">' + "".join(f"<{key}>{texts[key]}</{key}>" for key in COLUMNS[1:]) + "</visit>\n")
        xml.write("</visits>\n")
    for name, text in [("visit.schema.json", json.dumps(json_schema())), ("visit.table.json", json.dumps(table_schema())), ("visit.xsd", xsd())]:
        with open(place(name), "w") as file:
            file.write(text)
