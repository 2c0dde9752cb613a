"""Two checks of schemathesis, which loads this file, less what the schema of a form cannot say.

In a form everything is text, every field may come several times, and `format: binary` is any bytes. So a request that
keeps to the schema may still hold bytes that are no image, more names than images, or names in the query and in the
form; and a value of another type arrives as the text that stands for it, which is a name like any other.
"""

import re

import schemathesis
from schemathesis.core.failures import Failure
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from stage1_pro.core.serving.reading import NAMES

UNSAID = ("in the query, and a form brings its own", *(f"times '{name}' for" for name in NAMES))
OF_TYPE = re.compile("[Ii]ncorrect type|violates `type`")


@schemathesis.check
def valid_requests_are_decided(ctx, response, case):
    error = response.json().get("error", {}) if response.status_code in (400, 422) else {}
    if error.get("code") == "unreadable" or any(words in error.get("message", "") for words in UNSAID):
        return None
    return positive_data_acceptance(ctx, response, case)


@schemathesis.check
def invalid_requests_are_refused(ctx, response, case):
    try:
        return negative_data_rejection(ctx, response, case)
    except Failure as failure:
        if case.media_type == "multipart/form-data" and OF_TYPE.search(str(failure.message)):
            return None
        raise
