"""Values as the protocols write them, where the round trips do not show it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from moto.core.model import ServiceModel, Shape

from luthier.protocol import serializer

NUMBERS = {"shape": "Numbers"}
MODEL = ServiceModel(
    {
        "metadata": {},
        "operations": {},
        "shapes": {
            "Text": {"type": "string"},
            "Time": {"type": "timestamp"},
            "Blob": {"type": "blob"},
            "Flag": {"type": "boolean"},
            "Number": {"type": "integer"},
            "Float": {"type": "double"},
            "Numbers": {"type": "list", "member": {"shape": "Number"}},
            "Flat": {"type": "list", "member": {"shape": "Number", "locationName": "N"}, "flattened": True},
            "Map": {"type": "map", "key": {"shape": "Text"}, "value": {"shape": "Number"}},
            "FlatMap": {
                "type": "map", "key": {"shape": "Text", "locationName": "K"}, "value": {"shape": "Number"},
                "flattened": True,
            },
            "Inner": {
                "type": "structure",
                "members": {"Kind": {"shape": "Text", "locationName": "x:kind", "xmlAttribute": True},
                "A": {"shape": "Text"}},
                "xmlNamespace": {"prefix": "x", "uri": "urn:x"},
            },
            "Whole": {
                "type": "structure",
                "members": {
                    "Text": {"shape": "Text"}, "Renamed": {"shape": "Text", "locationName": "other"},
                    "Time": {"shape": "Time"}, "Unix": {"shape": "Time", "timestampFormat": "unixTimestamp"},
                    "Mail": {"shape": "Time", "timestampFormat": "rfc822"}, "Blob": {"shape": "Blob"},
                    "Flag": {"shape": "Flag"}, "Number": {"shape": "Number"}, "Float": {"shape": "Float"},
                    "Numbers": NUMBERS, "Flat": {"shape": "Flat"}, "Map": {"shape": "Map"},
                    "FlatMap": {"shape": "FlatMap"},
                    "Inner": {"shape": "Inner"}, "Head": {"shape": "Text", "location": "header",
                    "locationName": "X-Head"},
                    "When": {"shape": "Time", "location": "header", "locationName": "X-When"},
                    "Yes": {"shape": "Flag", "location": "header", "locationName": "X-Yes"},
                    "Many": {"shape": "Numbers", "location": "header", "locationName": "X-Many"},
                    "Meta": {"shape": "Map", "location": "headers", "locationName": "x-meta-"},
                },
            },
        },
    },
    "test",
)  # fmt: skip
WHOLE: Shape = MODEL.shape_for("Whole")
MOMENT = datetime(2030, 1, 2, 3, 4, 5, 678_000, UTC)


def xml(**members: Any) -> str:
    text = serializer.xml_element("W", WHOLE, members, "%Y-%m-%dT%H:%M:%SZ")
    return text.removeprefix("<W>").removesuffix("</W>")


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"Text": "a<b>&\"'"}, "<Text>a&lt;b&gt;&amp;\"'</Text>"),
        ({"Text": "\x01\uffff"}, "<Text>&#x1;&#xffff;</Text>"),
        ({"Renamed": "a"}, "<other>a</other>"),
        ({"Text": ""}, "<Text></Text>"),
        ({"Text": None, "Unknown": 1, "Head": "h"}, ""),
        ({"Time": MOMENT}, "<Time>2030-01-02T03:04:05Z</Time>"),
        ({"Time": MOMENT.astimezone(timezone(timedelta(hours=9)))}, "<Time>2030-01-02T03:04:05Z</Time>"),
        ({"Unix": MOMENT}, "<Unix>1893553445</Unix>"),
        ({"Mail": MOMENT}, "<Mail>Wed, 02 Jan 2030 03:04:05 GMT</Mail>"),
        ({"Blob": b"\x00\xff"}, "<Blob>AP8=</Blob>"),
        ({"Flag": False}, "<Flag>false</Flag>"),
        ({"Number": 0}, "<Number>0</Number>"),
        ({"Float": 0.1}, "<Float>0.1</Float>"),
        ({"Numbers": [1, 2]}, "<Numbers><member>1</member><member>2</member></Numbers>"),
        ({"Numbers": []}, "<Numbers></Numbers>"),
        ({"Flat": [1, 2]}, "<N>1</N><N>2</N>"),
        ({"Flat": []}, ""),
        ({"Map": {"a": 1}}, "<Map><entry><key>a</key><value>1</value></entry></Map>"),
        ({"FlatMap": {"a": 1, "b": 2}},
         "<FlatMap><K>a</K><value>1</value></FlatMap><FlatMap><K>b</K><value>2</value></FlatMap>"),
        ({"Inner": {"Kind": 'a"b', "A": "x"}}, "<Inner xmlns:x=\"urn:x\" x:kind='a\"b'><A>x</A></Inner>"),
    ],
)  # fmt: skip
def test_xml(members: dict[str, Any], expected: str) -> None:
    assert xml(**members) == expected


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"Text": "ü", "Renamed": "a", "Unknown": 1, "Head": "h", "Flag": None}, {"Text": "ü", "other": "a"}),
        ({"Time": MOMENT}, {"Time": 1893553445.678}),
        ({"Time": 1893553445}, {"Time": 1893553445}),
        ({"Time": 1893553445.6789}, {"Time": 1893553445.678}),
        ({"Time": -0.5}, {"Time": -0.5}),
        ({"Blob": b"\x00\xff", "Numbers": [1], "Map": {"a": 1}}, {"Blob": "AP8=", "Numbers": [1], "Map": {"a": 1}}),
        ({"Number": 2.0, "Float": 1, "Flag": False}, {"Number": 2, "Float": 1.0, "Flag": False}),
        ({"Float": float("nan")}, {"Float": "NaN"}),
        ({"Inner": {}, "Numbers": [], "Map": {}}, {"Inner": {}, "Numbers": [], "Map": {}}),
    ],
)
def test_json(members: dict[str, Any], expected: dict[str, Any]) -> None:
    assert json.loads(json.dumps(serializer.json_value(WHOLE, members), allow_nan=False)) == expected


def test_headers() -> None:
    members = {"Head": "a", "When": MOMENT, "Yes": True, "Many": ["a", "b"], "Meta": {"k": "v"}, "Text": "body"}
    assert serializer.headers(WHOLE, members) == {
        "X-Head": "a", "X-When": "Wed, 02 Jan 2030 03:04:05 GMT", "X-Yes": "true", "X-Many": "a,b", "x-meta-k": "v",
    }  # fmt: skip
    assert serializer.headers(WHOLE, {"Head": None}) == {}
