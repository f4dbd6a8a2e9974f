"""S3's errors as ours: what a person must correct, or what another attempt may cure.

No message repeats a key: whatever a server says, the secrets that boto3 found are cut out of it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from components.errors import TemporaryError, UserError

KEYS = (
    "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give the machine a role; "
    "AWS_ENDPOINT_URL names a server other than Amazon's."
)
ADVICE = {
    "NoSuchBucket": "Correct the bucket's name, or AWS_ENDPOINT_URL if it is on another server.",
    "InvalidBucketName": "Correct the bucket's name.",
    "AccessDenied": "Give these keys s3:ListBucket on the bucket and s3:GetObject on its objects.",
    "403": "Give these keys s3:ListBucket on the bucket and s3:GetObject on its objects.",
    "InvalidAccessKeyId": f"The keys are wrong for this server. {KEYS}",
    "SignatureDoesNotMatch": f"The keys are wrong for this server. {KEYS}",
    "ExpiredToken": "Get new temporary keys (`aws sso login`, or a new AWS_SESSION_TOKEN).",
    "RequestTimeTooSkewed": "Set this machine's clock.",
    "InvalidObjectState": "The object is archived: restore it (`aws s3api restore-object`).",
}
PASSING = ("SlowDown", "RequestTimeout", "RequestLimitExceeded", "Throttling", "InternalError")


@contextmanager
def answered(where: str) -> Iterator[None]:
    """UserError for what a person must correct, TemporaryError for a server or network away."""
    from boto3.exceptions import Boto3Error
    from botocore import exceptions as boto

    wrong = (
        boto.NoCredentialsError, boto.PartialCredentialsError, boto.CredentialRetrievalError,
        boto.TokenRetrievalError, boto.SSOError, boto.ProfileNotFound, boto.ConfigParseError,
        boto.ParamValidationError, boto.NoRegionError, boto.SSLError,
    )  # fmt: skip
    try:
        yield
    except boto.ClientError as error:
        raise _refused(where, error.response) from None
    except Boto3Error as error:  # an upload wraps what S3 said
        said = error.__context__
        if isinstance(said, boto.ClientError):
            raise _refused(where, said.response) from None
        raise TemporaryError(f"{where}: {hidden(error)}") from None
    except wrong as error:
        raise UserError(f"{where}: {hidden(error)}. {KEYS}") from None
    except boto.BotoCoreError as error:
        raise TemporaryError(
            f"{where}: S3 gave no answer: {hidden(error)}. It may pass; if it does not, check "
            "AWS_ENDPOINT_URL and the network."
        ) from None
    except ValueError as error:  # as botocore refuses an endpoint
        if "endpoint" not in str(error):
            raise
        raise UserError(f"{where}: {hidden(error)}. Correct AWS_ENDPOINT_URL.") from None


def _refused(where: str, response: dict[str, Any]) -> Exception:
    """By status: 5xx and throttling pass, the rest is for a person."""
    said = response.get("Error", {})
    code, status = said.get("Code", ""), response["ResponseMetadata"].get("HTTPStatusCode", 0)
    why = hidden(f"{where}: S3 says {code} ({status}): {said.get('Message', '')}").rstrip(". ")
    if status >= 500 or status == 429 or code in PASSING:
        return TemporaryError(f"{why}. It may pass; try again later.")
    advice = "Check the bucket's name, AWS_ENDPOINT_URL, the region and the keys."
    return UserError(f"{why}. {ADVICE.get(code, advice)}")


def hidden(said: object) -> str:
    """A text without the keys that boto3 found, and without a password in an address."""
    text = re.sub(r"//[^/@\s]+@", "//***@", str(said))
    for secret in _secrets():
        text = text.replace(secret, "***")
    return text


def _secrets() -> list[str]:
    import boto3

    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
    found = [os.environ.get(name, "") for name in names]
    try:
        keys = boto3.session.Session().get_credentials()
        found += [keys.access_key, keys.secret_key, keys.token or ""] if keys else []
    except Exception:  # noqa: S110 - broken settings are what the message is about
        pass
    return [secret for secret in found if len(secret or "") >= 8]
