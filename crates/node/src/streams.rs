//! Logs, exec and attach for the API server.

use crate::logs;
use crate::node::Node;
use crate::runner::PodContext;
use crate::supervisor::SupervisorError;
use crate::supervisor::client::GONE;
use crate::supervisor::proto::SessionRequest;
use cumulet_api::{Status, StatusReason};
use cumulet_cluster::streams::{ContainerRef, ExecOptions, LogOptions, PodRef, Session};
use cumulet_cluster::{BoxFuture, BoxStream, PodStreams};
use std::sync::Arc;

impl Node {
    fn context(&self, of: &ContainerRef) -> Result<Arc<PodContext>, Status> {
        self.runner.context(&of.uid).ok_or_else(|| Status::not_found("", "pods", &of.pod))
    }

    async fn session(&self, of: ContainerRef, request: SessionRequest) -> Result<Session, Status> {
        let context = self.context(&of)?;
        let stopped =
            || Status::bad_request(format!("container {} is not running in pod {}", of.container, of.pod));
        let supervisor = context.supervisor().ok_or_else(stopped)?;
        supervisor.session(request).await.map_err(|error: SupervisorError| match error.reason.as_str() {
            GONE => stopped(),
            "NotRunning" => Status::new(StatusReason::BadRequest, error.message),
            _ => Status::internal(error.message),
        })
    }
}

impl PodStreams for Node {
    fn logs(
        &self,
        of: ContainerRef,
        options: LogOptions,
    ) -> BoxFuture<'_, Result<BoxStream<'static, std::io::Result<bytes::Bytes>>, Status>> {
        Box::pin(async move { logs::open(&self.context(&of)?, &of, options).await })
    }

    fn exec(&self, of: ContainerRef, options: ExecOptions) -> BoxFuture<'_, Result<Session, Status>> {
        let request = SessionRequest::Exec {
            container: of.container.clone(),
            command: options.command,
            stdin: options.stdin,
            tty: options.tty,
            timeout_ms: 0,
        };
        Box::pin(self.session(of, request))
    }

    fn checkpoint(&self, of: PodRef, name: String) -> BoxFuture<'_, Result<String, Status>> {
        Box::pin(async move {
            let context = self.runner.context(&of.uid);
            context.ok_or_else(|| Status::not_found("", "pods", &of.pod))?.checkpoint(&name).await
        })
    }

    fn attach(&self, of: ContainerRef, options: ExecOptions) -> BoxFuture<'_, Result<Session, Status>> {
        let request = SessionRequest::Attach { container: of.container.clone(), stdin: options.stdin };
        Box::pin(self.session(of, request))
    }
}
