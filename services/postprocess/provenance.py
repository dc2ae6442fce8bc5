"""What a file says of its origin: made by a trained model, in the words that machines look for.

Two declarations, always written: IPTC's `DigitalSourceType` in XMP (Regulation (EU) 2024/1689, article 50, asks for a
machine-readable mark), and the `AIGC` field of GB 45438-2025 (implicit label in the metadata of a file).
"""

import json
from dataclasses import dataclass
from xml.sax.saxutils import escape

SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
AIGC_FIELD = "AIGC"
XMP_UUID = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")

_PACKET = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
 xmlns:TC260="http://www.tc260.org.cn/ns/AIGC/1.0/">
<Iptc4xmpExt:DigitalSourceType>{source_type}</Iptc4xmpExt:DigitalSourceType>
<TC260:AIGC>{aigc}</TC260:AIGC>
</rdf:Description></rdf:RDF></x:xmpmeta>
<?xpacket end="r"?>"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Maker:
    """Who makes clips here, with which model; `fingerprint` is that of the model's folder."""

    producer: str
    model: str = ""
    fingerprint: str = ""


RUSHES = Maker(producer="Rushes")
"""The maker where nobody else is named."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Making:
    """How a clip was made, as far as it is to be told: `seed` None and empty texts are not."""

    generation_id: str = ""
    seed: int | None = None
    settings_sha256: str = ""
    prompt: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Who made a clip, and the number by which the maker finds it again."""

    producer: str
    clip: str

    def aigc(self) -> str:
        """The value of the `AIGC` field; label 1 says that the content is generated."""
        fields = {
            "Label": "1",
            "ContentProducer": self.producer,
            "ProduceID": self.clip,
            "ReservedCode1": "",
            "ContentPropagator": "",
            "PropagateID": "",
            "ReservedCode2": "",
        }
        return json.dumps(fields, ensure_ascii=False, separators=(",", ":"))

    def box(self) -> bytes:
        """The XMP packet as a `uuid` box (ISO 16684-3), which may stand at the top level of an MP4."""
        packet = _PACKET.format(source_type=SOURCE_TYPE, aigc=escape(self.aigc())).encode()
        body = b"uuid" + XMP_UUID + packet
        return (len(body) + 4).to_bytes(4, "big") + body
