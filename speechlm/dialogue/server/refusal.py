"""How the server says no over HTTP: OpenAI's error object, which its clients know how to read."""

from __future__ import annotations

from starlette.responses import JSONResponse


class Refusal(Exception):
    """A request that cannot be served; the app turns it into a response."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        """Say it.

        Args:
            status: Of HTTP, 4xx or 5xx.
            code: What programs read.
            message: One line: what was expected, what came, what to do.
            param: Which field of the request it is about.
            retry_after_s: When to ask again, where that helps.
        """
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.param, self.retry_after_s = param, retry_after_s

    def response(self) -> JSONResponse:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        headers = {}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(self.retry_after_s)
        return JSONResponse(
            {
                "error": {
                    "message": self.message,
                    "type": kind,
                    "param": self.param,
                    "code": self.code,
                }
            },
            status_code=self.status,
            headers=headers,
        )
