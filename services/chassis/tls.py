"""TLS for both ends of a hop, from files."""

from dataclasses import dataclass
from pathlib import Path

import grpc


@dataclass(frozen=True, kw_only=True, slots=True)
class TlsFiles:
    """PEM files: an own certificate chain with its key, and the authority that vouches for the other side."""

    certificate: Path | None = None
    key: Path | None = None
    authority: Path | None = None

    def server_credentials(self) -> grpc.ServerCredentials:
        """Credentials of a server; with an authority every client must show a certificate of it (mTLS).

        Raises `ValueError` without certificate and key, `OSError` for a file that cannot be read.
        """
        if self.certificate is None or self.key is None:
            raise ValueError("a TLS server needs both a certificate and a key")
        pair = (self.key.read_bytes(), self.certificate.read_bytes())
        authority = self.authority.read_bytes() if self.authority else None
        return grpc.ssl_server_credentials(
            [pair], root_certificates=authority, require_client_auth=authority is not None
        )

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """Credentials of a client; without an authority the system's own roots vouch for the server.

        Raises `OSError` for a file that cannot be read.
        """
        return grpc.ssl_channel_credentials(
            root_certificates=self.authority.read_bytes() if self.authority else None,
            private_key=self.key.read_bytes() if self.key else None,
            certificate_chain=self.certificate.read_bytes() if self.certificate else None,
        )
