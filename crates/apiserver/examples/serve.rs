//! An API server alone, without node and controllers: `serve STATE_DIR [LISTEN]`. For trying the API by hand.

use cumulet_apiserver::{ApiServer, ApiServerConfig};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let dir = std::path::PathBuf::from(arguments.next().ok_or("usage: serve STATE_DIR [LISTEN]")?);
    let mut config = ApiServerConfig::new(&dir);
    if let Some(listen) = arguments.next() {
        config.listen = listen.parse()?;
    }
    let listener = tokio::net::TcpListener::bind(config.listen).await?;
    config.listen = listener.local_addr()?;
    let server = ApiServer::open(config.clone()).await?;
    server.write_kubeconfig(&dir.join("kubeconfig"), config.listen)?;
    let shutdown = CancellationToken::new();
    let signal = shutdown.clone();
    // Ends the program's serving when the user interrupts it.
    tokio::spawn(async move {
        let _ = tokio::signal::ctrl_c().await;
        signal.cancel();
    });
    eprintln!("KUBECONFIG={}", dir.join("kubeconfig").display());
    server.serve(listener, shutdown).await?;
    server.close().await;
    Ok(())
}
