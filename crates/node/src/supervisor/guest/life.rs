//! The life of a machine: boot, greeting, end.

use super::boot::{self, Qemu};
use super::link::{Link, LinkError};
use super::{Machine, Phase};
use crate::supervisor::proto::PodNetwork;
use cumulet_guest_proto::message::{Request, Snapshot};
use std::rc::Rc;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// How long the guest may take from the start of QEMU to its agent's answer. Seconds in software emulation on a
/// machine at rest.
const BOOT: Duration = Duration::from_secs(120);
/// When the channel breaks, how long QEMU may take to say a better reason.
const LAST_WORDS: Duration = Duration::from_secs(2);

impl Machine {
    /// The machine's life, from the start of QEMU to its end.
    pub(super) async fn run(self: Rc<Self>, qemu: Qemu, channel: UnixStream, network: PodNetwork) {
        let (link, greeted) = Link::new(boot::epoch());
        *self.link.borrow_mut() = Some(link.clone());
        let mut broken = false;
        let why = {
            let greeting = async {
                match self.greet(&link, greeted, &network).await {
                    Ok(()) => {
                        qemu.answered();
                        self.phase.send_replace(Phase::Ready);
                        std::future::pending().await
                    }
                    Err(why) => why,
                }
            };
            tokio::select! {
                // Dropping the others is sound: the machine is over.
                why = link.run(channel) => {
                    broken = true;
                    why
                }
                why = qemu.ended() => why,
                why = greeting => why,
                () = self.stop.notified() => "the pod was shut down".to_owned(),
            }
        };
        // A channel breaks a moment before the end of the process that held it is known.
        let better = if broken { timeout(LAST_WORDS, qemu.ended()).await.ok() } else { None };
        let why = better.unwrap_or(why);
        qemu.kill().await;
        let why =
            if self.stopping.get() { why } else { format!("{why}{}", boot::console_tail(&self.record.dir)) };
        tracing::info!(why, "the machine has ended");
        self.phase.send_replace(Phase::Gone(why));
        link.end();
        self.fewer.notify_waiters();
    }

    /// Waits for the agent and makes the guest a pod.
    async fn greet(
        &self,
        link: &Link,
        greeted: oneshot::Receiver<Snapshot>,
        network: &PodNetwork,
    ) -> Result<(), String> {
        match timeout(BOOT, greeted).await {
            Ok(Ok(snapshot)) => tracing::info!(snapshot.kernel, snapshot.uptime_us, "the guest has answered"),
            Ok(Err(_)) => return Err("the channel to the guest was closed".to_owned()),
            Err(_) => return Err(format!("the guest did not answer within {} s", BOOT.as_secs())),
        }
        let etc = self.files.etc(&self.vm.etc).map_err(|e| format!("{}: {e}", self.vm.etc.display()))?;
        let pod = boot::pod(&self.record.sandbox, &self.vm, network, etc)?;
        match link.request(Request::Configure(Box::new(pod))).await {
            Ok(_) => Ok(()),
            Err(LinkError::Refused(_, message)) => Err(format!("the guest cannot become the pod: {message}")),
            Err(_) => Err("the guest did not become the pod".to_owned()),
        }
    }
}
