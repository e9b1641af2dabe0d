"""Talk to a server that speaks KServe's protocol, version 2, over HTTP or gRPC.

https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol
"""

from __future__ import annotations

import contextlib
import os
import re
import ssl
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any, TypeAlias
from urllib.parse import quote, unquote, urlsplit

import numpy as np
import numpy.typing as npt

from deploykit.errors import InputError, ServerError, UsageError
from deploykit.specs.session import Closing, ServerProtocol
from deploykit.system.deps import need
from deploykit.system.text import has_control_character, visible

#: What a server wants that asks for a key: sent as ``Authorization: Bearer ...``.
KEY_VARIABLE = "DEPLOYKIT_SERVER_KEY"
#: Certificates to trust instead of the usual ones, as OpenSSL has it.
CERTIFICATES_VARIABLE = "SSL_CERT_FILE"
#: How the address names a model, as in the protocol's own paths.
_MODEL_PATH = re.compile(r"(?P<base>.*?)/v2/models/(?P<model>[^/]+)(/versions/(?P<version>[^/]+))?")
_MOST_CHARACTERS = 300

Array: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True)
class ServerAddress:
    """Where a server's model is.

    Attributes:
        protocol: What is spoken.
        host: Host and port, and for HTTP a path before ``/v2``.
        tls: Whether what is said is encrypted.
        model: Its name.
        version: "" for the one that the server chooses.
    """

    protocol: ServerProtocol
    host: str
    tls: bool
    model: str
    version: str = ""

    def __str__(self) -> str:
        scheme = ("https" if self.tls else "http") if self.protocol == "http" else "grpc"
        return f"{scheme}://{self.host}"


def parse_address(url: str, protocol: ServerProtocol, model: str) -> ServerAddress:
    """Read a server's address.

    Args:
        url: ``http://host:8000``, ``host:8000``, ``https://host/base/v2/models/NAME/versions/2``.
        protocol: What the server speaks there.
        model: The model where the address names none.

    Raises:
        UsageError: It is no such address, or has a password in it.
    """
    scheme, separator, rest = url.partition("://")
    scheme = scheme.lower() if separator else ""
    schemes = ("http", "https", protocol)
    hint = f"Write it so: --server http://127.0.0.1:8000/v2/models/{quote(model)}"
    if not url.isprintable() or " " in url or (separator and scheme not in schemes):
        raise UsageError(f"{url!r} is no address of a server that speaks {protocol}.", hint=hint)
    parts = urlsplit(f"//{rest if separator else url}")
    if parts.username is not None or parts.query or parts.fragment:
        raise UsageError(
            "A server's address has no user, password, ? or # in it.",
            hint=f"Give a key by the environment variable {KEY_VARIABLE}.",
        )
    try:
        named = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:  # a port that is none
        named = False
    path = parts.path.rstrip("/").removesuffix("/v2")
    found = _MODEL_PATH.fullmatch(path)
    base = path if found is None else found["base"]
    if not named or "/v2" in base or (base and protocol == "grpc"):
        raise UsageError(f"{url!r} is no address of a server that speaks {protocol}.", hint=hint)
    port = "" if parts.port else f":{_default_port(scheme, protocol)}"
    return ServerAddress(
        protocol,
        f"{parts.netloc}{port}{base}",
        tls=scheme == "https",
        model=model if found is None else unquote(found["model"]),
        version="" if found is None else found["version"] or "",
    )


def _default_port(scheme: str, protocol: ServerProtocol) -> int:
    """That of the scheme; without one Triton's."""
    return {"https": 443, "http": 80}.get(scheme, 8000 if protocol == "http" else 8001)


def read_key() -> str:
    """The key that the environment gives; "" for none.

    Raises:
        UsageError: It cannot stand in a header.
    """
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not key.isascii() or has_control_character(key):
        raise UsageError(
            f"The key in {KEY_VARIABLE} has a character that no key has.",
            hint="Set it again, as one line of plain letters, digits and signs.",
        )
    return key


@dataclass(frozen=True)
class ServerTensor:
    """An input or output, as the server's metadata tells it.

    Attributes:
        name: Its name.
        datatype: ``FP32``, ``UINT8``, ``BYTES``, ...
        shape: With the batch first; -1 for any size.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return visible(f"{self.name} {self.datatype} {list(self.shape)}")


@dataclass(frozen=True)
class ModelMetadata:
    """What a server tells of itself and of a model.

    Attributes:
        server: Its name and version: ``triton 2.51.0``.
        extensions: Those of the protocol that it has.
        inputs: The model's.
        outputs: The model's.
        largest_batch: The most images that one request may have; None where the server does not
            tell.
    """

    server: str
    extensions: frozenset[str]
    inputs: tuple[ServerTensor, ...]
    outputs: tuple[ServerTensor, ...]
    largest_batch: int | None


class ServerClient(Closing):
    """A connection to one model of a server. For one thread.

    Args:
        address: Where it is.
        key: Sent with each request; "" for none.
        timeout_s: Seconds that a request may take.

    Raises:
        DependencyError: What speaks the protocol is not installed.
    """

    def __init__(self, address: ServerAddress, key: str, timeout_s: float) -> None:
        self.address = address
        self._timeout_s = timeout_s
        self._is_http = address.protocol == "http"
        self._api: Any = need(f"tritonclient.{address.protocol}")
        self._error: type[Exception] = need("tritonclient.utils").InferenceServerException
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        self._binary = True
        # What stands behind a name that stays the same for each call.
        self._bounded = {} if self._is_http else {"client_timeout": timeout_s}
        with self._mapped():
            self._client = self._open()

    def _open(self) -> Any:
        certificates = os.environ.get(CERTIFICATES_VARIABLE)
        options: dict[str, Any] = {"ssl": self.address.tls}
        if not self._is_http:
            if self.address.tls and certificates:
                options["root_certificates"] = certificates
            return self._api.InferenceServerClient(self.address.host, **options)
        if self.address.tls:
            options["ssl_context_factory"] = need("gevent.ssl").create_default_context
            if certificates:
                options["ssl_options"] = {"ca_certs": certificates}
        return self._api.InferenceServerClient(
            self.address.host,
            connection_timeout=self._timeout_s,
            network_timeout=self._timeout_s,
            **options,
        )

    def close(self) -> None:
        """Close the connection; closing twice is fine."""
        self._client.close()

    def describe(self) -> ModelMetadata:
        """Ask for the server's metadata, and the model's.

        Raises:
            ServerError: The server does not answer, is not ready, or wants a key.
            InputError: It has no such model, or its answers are not the protocol's.
        """
        where = self.address
        with self._mapped():
            told = self._ask("get_server_metadata")
            extensions = frozenset(map(str, told.get("extensions", ())))
            self._binary = not self._is_http or "binary_tensor_data" in extensions
            server = visible(f"{told['name']} {told.get('version', '')}".strip())
            ready = self._call("is_model_ready", where.model, where.version)
        if not ready:
            self._refuse_unready()
        with self._mapped():
            model = self._ask("get_model_metadata", where.model, where.version)
            inputs, outputs = (
                tuple(
                    ServerTensor(str(each["name"]), str(each["datatype"]), _shape(each["shape"]))
                    for each in model.get(side) or ()
                )
                for side in ("inputs", "outputs")
            )
            largest = None
            if "model_configuration" in extensions:
                config = self._ask("get_model_config", where.model, where.version)
                largest = int(config.get("config", config).get("max_batch_size", 0)) or None
        return ModelMetadata(server[:60], extensions, inputs, outputs, largest)

    def _refuse_unready(self) -> None:
        """Say why a model cannot be asked: there is none, or it is not ready.

        Raises:
            ServerError: It is not ready.
            InputError: There is none.
        """
        where = self.address
        with self._mapped(there_is_none=f"{where} has no model {where.model!r}"):
            self._ask("get_model_metadata", where.model, where.version)
        raise ServerError(
            f"{where} has the model {where.model!r}, which is not ready.",
            hint="See in the server's log what it waits for, and try again once it is loaded.",
        )

    def infer(
        self,
        tensor: ServerTensor,
        values: Array,
        outputs: Sequence[str],
        *,
        classes: int = 0,
    ) -> dict[str, Array]:
        """Ask the model.

        Args:
            tensor: The input that is given.
            values: Its values, of the tensor's type.
            outputs: The outputs that are wanted, by their names.
            classes: So many classes of each output, ranked, instead of its values; 0 for these.

        Returns:
            The outputs, by their names.

        Raises:
            ServerError: The server does not answer in time, or wants a key.
            InputError: It refuses, or its answer is not the protocol's.
        """
        binary = {"binary_data": self._binary} if self._is_http else {}
        given = self._api.InferInput(tensor.name, list(values.shape), tensor.datatype)
        given.set_data_from_numpy(values, **binary)
        wanted = [
            self._api.InferRequestedOutput(name, class_count=classes, **binary) for name in outputs
        ]
        with self._mapped():
            answer = self._call(
                "infer",
                self.address.model,
                [given],
                model_version=self.address.version,
                outputs=wanted,
            )
            with np.errstate(over="ignore"):  # a number too large for FP32 is infinite
                found = {name: answer.as_numpy(name) for name in outputs}
        if missing := [name for name, each in found.items() if each is None]:
            raise InputError(
                f"{self.address} leaves out {missing[0]!r}, which its metadata promises."
            )
        texts = [name for name, each in found.items() if each.dtype.kind not in "fiu"]
        if texts and not classes:
            raise InputError(f"{self.address} answers with {texts[0]!r} that has no numbers.")
        return found

    @property
    def takes_bytes(self) -> bool:
        """Whether a request can hold an image's file: JSON cannot."""
        return self._binary

    def _ask(self, method: str, *arguments: str) -> Mapping[str, Any]:
        """Call what answers with JSON."""
        as_json = {} if self._is_http else {"as_json": True}
        found = self._call(method, *arguments, **as_json)
        if not isinstance(found, dict):
            raise TypeError(f"{type(found).__name__} where there should be an object")
        return found

    def _call(self, method: str, *arguments: object, **options: Any) -> Any:
        call = getattr(self._client, method)
        with self._in_time():
            return call(*arguments, headers=dict(self._headers), **options, **self._bounded)

    def _in_time(self) -> contextlib.AbstractContextManager[Any]:
        """A limit on the whole of a request: each part of an answer may come in time."""
        if not self._is_http:
            return contextlib.nullcontext()
        limit: contextlib.AbstractContextManager[Any] = need("gevent").Timeout(
            self._timeout_s, TimeoutError
        )
        return limit

    @contextlib.contextmanager
    def _mapped(self, there_is_none: str = "") -> Iterator[None]:
        """Turn what goes wrong on the wire into errors of ours.

        Args:
            there_is_none: What it means that the server refuses; "" for no more than that.
        """
        where = self.address
        try:
            yield
        except self._error as exc:
            raise self._refusal(exc, there_is_none) from exc
        except TimeoutError as exc:
            raise self._too_late() from exc
        except ssl.SSLError as exc:
            raise ServerError(
                f"{where} cannot be trusted: {_told(exc)}.",
                hint="Name the certificate of who signed the server's: set "
                f"{CERTIFICATES_VARIABLE}=FILE.pem. A server without TLS is http://.",
            ) from exc
        except HTTPException as exc:
            raise ServerError(
                f"{where} gave no whole answer in HTTP: {_told(exc)}.",
                hint="See in the server's log whether it ended; check the address, --protocol, and "
                "whether it has TLS (https://).",
            ) from exc
        except OSError as exc:
            raise ServerError(
                f"{where} cannot be reached: {_told(exc)}.",
                hint="Check that the server runs, and its address and port.",
            ) from exc
        except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as exc:
            raise InputError(
                f"{where} does not answer as KServe's protocol, version 2, has it: {_told(exc)}.",
                hint="Check that the address is that of a model server, and --protocol.",
            ) from exc

    def _too_late(self) -> ServerError:
        return ServerError(
            f"{self.address} gave no whole answer within {self._timeout_s:g} s.",
            hint="See in the server's log what it is busy with.",
        )

    def _refusal(self, error: Any, there_is_none: str) -> ServerError | InputError:
        """What the server's error means."""
        where, status = self.address, str(error.status() or "").removeprefix("StatusCode.")
        message = _told(error.message() or error)
        if status in ("401", "403", "UNAUTHENTICATED", "PERMISSION_DENIED"):
            return ServerError(
                f"{where} refuses the key: {message}."
                if self._headers
                else f"{where} wants a key: {message}.",
                hint=f"Set the environment variable {KEY_VARIABLE} to it.",
            )
        if status == "DEADLINE_EXCEEDED":
            return self._too_late()
        if status in ("502", "503", "504", "UNAVAILABLE"):
            return ServerError(
                f"{where} cannot be reached: {message}.",
                hint="Check that the server runs, its address and port, and whether it has TLS "
                f"(https://, and for certificates of your own {CERTIFICATES_VARIABLE}=FILE.pem).",
            )
        if there_is_none:
            return InputError(
                f"{there_is_none}: {message}.",
                hint="Name the server's model in the address: "
                f"--server {where}/v2/models/{quote('NAME')}",
            )
        refused = f"{where} refuses ({status})" if status else f"{where} refuses"
        return InputError(f"{refused}: {message}.")


def _shape(values: Sequence[Any]) -> tuple[int, ...]:
    """The dimensions, which JSON of gRPC has as texts."""
    return tuple(int(each) for each in values)


def _told(error: object) -> str:
    """An error in one line that no server can make look like several."""
    text = visible(" ".join(str(error).split()))[:_MOST_CHARACTERS].rstrip(".")
    return text or type(error).__name__
