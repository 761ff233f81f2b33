//! Standby clones: made behind the pods' backs, given to pods, ended when nobody wants them.
//!
//! One keeper per template makes them one after the other, only while no pod of this node is starting, and with the
//! least share of the processors.

use super::Shared;
use super::sandbox::blocking;
use super::task::PodContext;
use crate::dirs::{private_dir, remove_dir};
use crate::snapshots::{Entry, Hot, IDLE, Pattern, Standby};
use crate::supervisor::Supervisor;
use crate::supervisor::client::finish;
use crate::supervisor::files;
use crate::supervisor::proto::{PodNetwork, Request, SandboxSpec, VmMemory, VmSpec};
use crate::vm;
use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

/// Names of standbys begin so, where pods have their uids.
const PREFIX: &str = "standby-";
/// The least share of the processors, in the units of cgroup version 1.
const LEAST_SHARES: u64 = 2;

/// Makes sure that somebody keeps the template's pool.
pub(super) fn keep(shared: &Arc<Shared>, entry: &Arc<Entry>) {
    entry.pool.started.notify_one();
    if entry.pool.keep() {
        let (shared, entry) = (shared.clone(), entry.clone());
        // Ends when the template has been idle for long, or with the shutdown token.
        tokio::spawn(async move {
            let shutdown = shared.shutdown.clone();
            tokio::select! {
                // A standby that is just being made is ended by the next process, as all are.
                () = keeper(&shared, &entry) => {}
                () = shutdown.cancelled() => {}
            }
        });
    }
}

async fn keeper(shared: &Arc<Shared>, entry: &Arc<Entry>) {
    loop {
        while let (Some(pattern), Some(hot)) = (entry.pool.lacking(Instant::now()), entry.hot()) {
            shared.quiet().await;
            match make(shared, entry, &hot, pattern).await {
                Ok(standby) => entry.pool.put(standby),
                Err(error) => {
                    tracing::warn!(template = entry.short(), error, "no standby");
                    break;
                }
            }
        }
        if entry.hot().is_none() {
            // Of a template that has failed or was removed nobody wants a clone.
            for standby in entry.pool.drain() {
                end(shared, standby).await;
            }
        }
        let idle_at = entry.pool.idle_at().unwrap_or_else(|| Instant::now() + IDLE);
        tokio::select! {
            // Both only wait.
            () = entry.pool.started.notified() => {}
            () = tokio::time::sleep_until(idle_at.into()) => {
                entry.pool.release();
                entry.cool();
                for standby in entry.pool.drain() {
                    end(shared, standby).await;
                }
                return;
            }
        }
    }
}

/// Makes a standby.
async fn make(
    shared: &Arc<Shared>,
    entry: &Entry,
    hot: &Arc<Hot>,
    pattern: Pattern,
) -> Result<Standby, String> {
    let id = random_id().map_err(|e| format!("/dev/urandom: {e}"))?;
    let name = format!("{PREFIX}{id}");
    let dir = shared.dirs.pods().join(&name);
    let cgroup = format!("{}/pod{name}", shared.config.cgroup);
    let address = shared.network.addresses().allocate().map_err(|e| e.to_string())?;
    let made = spawn(shared, hot, pattern, (&dir, &cgroup, address)).await;
    match made {
        Ok((supervisor, network)) => {
            tracing::debug!(template = entry.short(), %address, "a standby waits");
            Ok(Standby { supervisor: Arc::new(supervisor), dir, cgroup, address, network })
        }
        Err(error) => {
            clean(shared, dir, cgroup, address).await;
            Err(error)
        }
    }
}

async fn spawn(
    shared: &Arc<Shared>,
    hot: &Arc<Hot>,
    pattern: Pattern,
    (dir, cgroup, address): (&PathBuf, &str, Ipv4Addr),
) -> Result<(Supervisor, PodNetwork), String> {
    let mut limits = pattern.vm.limits.clone();
    limits.cpu_shares = Some(LEAST_SHARES);
    let vm = VmSpec {
        memory: VmMemory::Clone { state: hot.state.clone(), notes: hot.notes.clone() },
        mac: cumulet_net::hardware_address(address),
        user: (vm::user(address), pattern.vm.user.1),
        volumes: BTreeMap::new(),
        limits,
        ..pattern.vm
    };
    let spec = SandboxSpec {
        uid: String::new(),
        namespace: pattern.namespace,
        name: "standby".to_owned(),
        hostname: "standby".to_owned(),
        host_network: false,
        host_ipc: false,
        sysctls: BTreeMap::new(),
        cgroup: cgroup.to_owned(),
        log_dir: String::new(),
        log_max_bytes: shared.config.log_max_bytes,
        log_max_files: shared.config.log_max_files,
        standby: true,
        vm: Some(Box::new(vm)),
    };
    let network = shared.network.clone();
    let place = dir.clone();
    let (side, tap) = blocking(move || {
        private_dir(&place).map_err(|e| format!("{}: {e}", place.display()))?;
        network.attach_tap(address).map(|tap| (network.pod_side(address), tap)).map_err(|e| e.to_string())
    })
    .await?;
    let network = PodNetwork {
        interface: side.interface,
        address: side.address.to_string(),
        gateway: side.gateway.to_string(),
        mtu: side.mtu,
        tap: Some(tap),
    };
    let supervisor = Supervisor::spawn(&shared.config.exe, dir, &spec, Some(&hot.memory));
    let supervisor = supervisor.await.map_err(|e| e.message)?;
    let configured = supervisor.request(Request::ConfigureNetwork(network.clone())).await;
    match configured {
        Ok(()) => Ok((supervisor, network)),
        Err(error) => {
            let _ = supervisor.request(Request::Shutdown).await;
            Err(error.message)
        }
    }
}

/// Gives a standby to a pod that has no directory yet: the standby's becomes it. False when the standby is of no use.
pub(super) async fn give(
    context: &Arc<PodContext>,
    standby: &Standby,
    spec: &SandboxSpec,
    write: impl FnOnce() -> Result<(), String> + Send + 'static,
) -> Result<(), String> {
    let (from, to, file) = (standby.dir.clone(), context.dirs.root.clone(), spec.clone());
    blocking(move || {
        fs::rename(&from, &to).map_err(|e| format!("{}: {e}", from.display()))?;
        files::write_json(&to.join(files::SANDBOX), &file).map_err(|e| format!("{}: {e}", files::SANDBOX))?;
        write()
    })
    .await?;
    standby.supervisor.moved(&context.dirs.root);
    let become_pod = Request::Become(Box::new(spec.clone()), standby.network.clone());
    standby.supervisor.request(become_pod).await.map_err(|e| e.message)
}

/// Ends a standby.
pub(super) async fn end(shared: &Arc<Shared>, standby: Standby) {
    // One that is gone already is cleaned up below.
    let _ = standby.supervisor.request(Request::Shutdown).await;
    clean(shared, standby.dir, standby.cgroup, standby.address).await;
}

async fn clean(shared: &Arc<Shared>, dir: PathBuf, cgroup: String, address: Ipv4Addr) {
    let network = shared.network.clone();
    let cleaned = blocking(move || {
        network.detach(address).map_err(|e| e.to_string())?;
        network.addresses().release(address);
        finish(&dir, &cgroup).map_err(|e| e.message)?;
        remove_dir(&dir).map_err(|e| e.to_string())
    });
    if let Err(error) = cleaned.await {
        tracing::warn!(error, "a standby left something behind");
    }
}

fn random_id() -> std::io::Result<String> {
    use std::io::Read;
    let mut bytes = [0_u8; 8];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
