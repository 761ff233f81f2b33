"""How gunicorn serves the board. On SIGTERM it finishes the requests under way."""

import os

from gunicorn.glogging import Logger


class WithoutProbes(Logger):
    """Writes no lines for the requests of probes."""

    def access(self, resp, req, environ, request_time):
        if req.path != "/healthz":
            super().access(resp, req, environ, request_time)


bind = "0.0.0.0:" + os.environ.get("PORT", "8080")
workers = int(os.environ.get("WORKERS", "1"))
threads = 4
graceful_timeout = 10
# The workers' heartbeat files: in memory, so that a slow disk is not taken for a hanging worker.
worker_tmp_dir = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
logger_class = WithoutProbes
accesslog = "-"
access_log_format = '%(h)s "%(r)s" %(s)s %(b)s %(M)sms'
