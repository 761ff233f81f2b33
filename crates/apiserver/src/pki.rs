//! The cloud's own certificate authority, the server certificate and the administrator's client certificate.
//!
//! Files live in `STATE/pki`, mode 0600 (directory 0700): `ca.crt`, `ca.key`, `server.crt`, `server.key`,
//! `admin.crt`, `admin.key`. A leaf is made anew when it is missing, near its expiry, does not belong to the
//! authority, or (the server's) lacks a name it must have: at the start, and while the server runs (`renew`). The
//! authority is kept for ten years.
//!
//! What is absent: certificates for other users; they come with the certificate signing API.

use crate::config::{ApiServerConfig, OpenError};
use arc_swap::ArcSwap;
use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// Life of the authority, in years.
const CA_YEARS: i64 = 10;
/// Life of a leaf certificate, in days.
const LEAF_DAYS: i64 = 365;
/// A leaf is renewed when it has fewer days than this left.
const RENEW_DAYS: i64 = 30;

/// The authority, and the certificates that it has signed for this server.
pub(crate) struct Pki {
    authority: Authority,
    config: ApiServerConfig,
    leaves: Arc<ArcSwap<Leaves>>,
}

struct Authority {
    /// Where the files are.
    dir: PathBuf,
    /// Its certificate, as PEM text.
    cert: String,
    issuer: Issuer<'static, KeyPair>,
}

/// What the certificates are replaced by together.
struct Leaves {
    server: Arc<Leaf>,
    admin: Arc<Leaf>,
    /// The server's, ready for handshakes.
    shown: Arc<CertifiedKey>,
}

/// A certificate with its key, as PEM text. No `Debug`, so that the key cannot reach a log.
pub(crate) struct Leaf {
    pub(crate) cert: String,
    pub(crate) key: String,
}

/// Whose certificate it is.
#[derive(Clone, Copy)]
enum Role {
    Server,
    Admin,
}

type Made<T> = Result<T, String>;

impl Pki {
    /// Reads the certificates of the state directory and makes what is missing or too old.
    pub(crate) fn open(config: &ApiServerConfig) -> Result<Self, OpenError> {
        let dir = config.state_dir.join("pki");
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .map_err(|source| OpenError::Io { path: dir.clone(), source })?;
        Self::load(&dir, config).map_err(|message| OpenError::Pki { path: dir, message })
    }

    fn load(dir: &Path, config: &ApiServerConfig) -> Made<Self> {
        let authority = Authority::open(dir)?;
        let now = Timestamp::now();
        let known = |role: Role| Ok::<_, String>(read_pair(dir, role.stem())?.map(Arc::new));
        let server = authority.leaf(Role::Server, known(Role::Server)?, config, now)?;
        let admin = authority.leaf(Role::Admin, known(Role::Admin)?, config, now)?;
        let leaves = Arc::new(ArcSwap::from_pointee(Leaves::new(server, admin)?));
        Ok(Self { authority, config: config.clone(), leaves })
    }

    /// Makes the certificates anew that end soon, seen from `now`; new connections are shown the new one. True when
    /// the administrator's is another one now.
    pub(crate) fn renew(&self, now: Timestamp) -> Made<bool> {
        let old = self.leaves.load_full();
        let server = self.authority.leaf(Role::Server, Some(old.server.clone()), &self.config, now)?;
        let admin = self.authority.leaf(Role::Admin, Some(old.admin.clone()), &self.config, now)?;
        let renewed = !Arc::ptr_eq(&admin, &old.admin);
        if renewed || !Arc::ptr_eq(&server, &old.server) {
            self.leaves.store(Arc::new(Leaves::new(server, admin)?));
        }
        Ok(renewed)
    }

    /// The TLS configuration of the server: client certificates of our authority are asked for, not demanded.
    pub(crate) fn tls_config(&self) -> Made<rustls::ServerConfig> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        let ca = CertificateDer::from_pem_slice(self.authority.cert.as_bytes()).map_err(text)?;
        roots.add(ca).map_err(text)?;
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .allow_unauthenticated()
            .build()
            .map_err(text)?;
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(text)?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(Shown(self.leaves.clone())));
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(tls)
    }

    /// The authority's certificate, as PEM text.
    pub(crate) fn ca_pem(&self) -> &str {
        &self.authority.cert
    }

    /// The administrator's certificate and key.
    pub(crate) fn admin(&self) -> Arc<Leaf> {
        self.leaves.load().admin.clone()
    }
}

impl Leaves {
    fn new(server: Arc<Leaf>, admin: Arc<Leaf>) -> Made<Self> {
        let chain = vec![CertificateDer::from_pem_slice(server.cert.as_bytes()).map_err(text)?];
        let key = PrivateKeyDer::from_pem_slice(server.key.as_bytes()).map_err(text)?;
        let provider = rustls::crypto::ring::default_provider();
        let shown = Arc::new(CertifiedKey::from_der(chain, key, &provider).map_err(text)?);
        Ok(Self { server, admin, shown })
    }
}

/// Shows every client the server's certificate of that moment.
struct Shown(Arc<ArcSwap<Leaves>>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load().shown.clone())
    }
}

impl std::fmt::Debug for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shown")
    }
}

impl Role {
    const fn stem(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Admin => "admin",
        }
    }

    fn names(self, config: &ApiServerConfig) -> BTreeSet<String> {
        match self {
            Self::Server => server_names(config),
            Self::Admin => BTreeSet::new(),
        }
    }

    fn params(self, config: &ApiServerConfig) -> Made<CertificateParams> {
        match self {
            Self::Server => server_params(config),
            Self::Admin => Ok(admin_params()),
        }
    }
}

impl Authority {
    /// From disk, or a new one.
    fn open(dir: &Path) -> Made<Self> {
        let dir = dir.to_owned();
        if let Some(found) = read_pair(&dir, "ca")? {
            let key = KeyPair::from_pem(&found.key).map_err(text)?;
            let issuer = Issuer::from_ca_cert_pem(&found.cert, key).map_err(text)?;
            return Ok(Self { dir, cert: found.cert, issuer });
        }
        let mut params = CertificateParams::default();
        params.distinguished_name = name("kubernetes", None);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        valid_for_days(&mut params, CA_YEARS * 365, Timestamp::now());
        let key = KeyPair::generate().map_err(text)?;
        let cert = params.self_signed(&key).map_err(text)?.pem();
        write_pair(&dir, "ca", &cert, &key.serialize_pem())?;
        Ok(Self { dir, cert, issuer: Issuer::new(params, key) })
    }

    /// The certificate `known` when it is good enough at `now`, else a new one, which is written to the disk.
    fn leaf(
        &self,
        role: Role,
        known: Option<Arc<Leaf>>,
        config: &ApiServerConfig,
        now: Timestamp,
    ) -> Made<Arc<Leaf>> {
        if let Some(known) = known
            && good_enough(&known.cert, &self.cert, &role.names(config), now)
        {
            return Ok(known);
        }
        let mut params = role.params(config)?;
        valid_for_days(&mut params, LEAF_DAYS, now);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().map_err(text)?;
        let cert = params.signed_by(&key, &self.issuer).map_err(text)?.pem();
        let key = key.serialize_pem();
        write_pair(&self.dir, role.stem(), &cert, &key)?;
        Ok(Arc::new(Leaf { cert, key }))
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// True when the certificate is signed by the authority, is not near its end and has all the names.
fn good_enough(cert: &str, ca_cert: &str, names: &BTreeSet<String>, now: Timestamp) -> bool {
    let (Ok(cert), Ok(ca)) =
        (CertificateDer::from_pem_slice(cert.as_bytes()), CertificateDer::from_pem_slice(ca_cert.as_bytes()))
    else {
        return false;
    };
    let (Ok((_, cert)), Ok((_, ca))) = (X509Certificate::from_der(&cert), X509Certificate::from_der(&ca))
    else {
        return false;
    };
    let fresh = cert.validity().not_after.timestamp() > now.as_second() + RENEW_DAYS * 86_400;
    // Issuer names are equal for every authority of ours, so the key identifiers decide.
    let ours = key_id(&ca, true).is_some_and(|id| key_id(&cert, false) == Some(id));
    fresh && ours && names.is_subset(&san_names(&cert))
}

/// The subject key identifier of an authority, or the authority key identifier of a leaf.
fn key_id(cert: &X509Certificate<'_>, subject: bool) -> Option<Vec<u8>> {
    use x509_parser::extensions::ParsedExtension;
    cert.extensions().iter().find_map(|e| match e.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(id) if subject => Some(id.0.to_vec()),
        ParsedExtension::AuthorityKeyIdentifier(id) if !subject => {
            Some(id.key_identifier.as_ref()?.0.to_vec())
        }
        _ => None,
    })
}

fn san_names(cert: &X509Certificate<'_>) -> BTreeSet<String> {
    let Ok(Some(san)) = cert.subject_alternative_name() else { return BTreeSet::new() };
    let ip = |bytes: &[u8]| match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        _ => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
    };
    san.value
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::IPAddress(bytes) => ip(bytes).map(|ip| ip.to_string()),
            _ => None,
        })
        .collect()
}

/// Every name under which clients reach the server.
fn server_names(config: &ApiServerConfig) -> BTreeSet<String> {
    let zone = &config.cluster_domain;
    let mut names: BTreeSet<String> =
        ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "127.0.0.1", "::1"]
            .into_iter()
            .map(str::to_owned)
            .collect();
    names.insert(format!("kubernetes.default.svc.{zone}"));
    names.insert(config.node_name.to_ascii_lowercase());
    names.extend(config.first_service_ip().map(|ip| ip.to_string()));
    if !config.listen.ip().is_unspecified() {
        names.insert(config.listen.ip().to_string());
    }
    names
}

fn server_params(config: &ApiServerConfig) -> Made<CertificateParams> {
    let mut params = CertificateParams::default();
    params.distinguished_name = name("kube-apiserver", None);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    for name in server_names(config) {
        params.subject_alt_names.push(match name.parse::<IpAddr>() {
            Ok(ip) => SanType::IpAddress(ip),
            Err(_) => SanType::DnsName(name.try_into().map_err(text)?),
        });
    }
    Ok(params)
}

fn admin_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = name("kubernetes-admin", Some("system:masters"));
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    params
}

fn name(common: &str, organization: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    if let Some(organization) = organization {
        name.push(DnType::OrganizationName, organization);
    }
    name.push(DnType::CommonName, common);
    name
}

/// Valid from the day before `now` (clocks differ) for this many days.
fn valid_for_days(params: &mut CertificateParams, days: i64, now: Timestamp) {
    let date = |day_offset: i64| {
        let at = now.to_zoned(jiff::tz::TimeZone::UTC).date();
        let at = at.saturating_add(jiff::Span::new().days(day_offset));
        rcgen::date_time_ymd(i32::from(at.year()), at.month().unsigned_abs(), at.day().unsigned_abs())
    };
    params.not_before = date(-1);
    params.not_after = date(days);
}

fn read_pair(dir: &Path, stem: &str) -> Made<Option<Leaf>> {
    let (cert, key) = paths(dir, stem);
    let read = |path: &Path| match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(format!("cannot read {}: {e}", path.display())),
    };
    Ok(match (read(&cert)?, read(&key)?) {
        (Some(cert), Some(key)) => Some(Leaf { cert, key }),
        _ => None,
    })
}

fn write_pair(dir: &Path, stem: &str, cert: &str, key: &str) -> Made<()> {
    let (cert_path, key_path) = paths(dir, stem);
    // The key goes first: a crash in between leaves a pair that is made anew, never a certificate with a wrong key.
    let _ = fs::remove_file(&cert_path);
    for (path, text) in [(key_path, key), (cert_path, cert)] {
        write_private(&path, text).map_err(|e| format!("cannot write {}: {e}", path.display()))?;
    }
    Ok(())
}

/// Replaces a file by one that only its owner can read.
pub(crate) fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    let temporary = path.with_extension("tmp");
    let _ = fs::remove_file(&temporary);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, path)
}

fn paths(dir: &Path, stem: &str) -> (PathBuf, PathBuf) {
    (dir.join(format!("{stem}.crt")), dir.join(format!("{stem}.key")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn certs(pki: &Pki) -> (String, String) {
        let leaves = pki.leaves.load();
        (leaves.server.cert.clone(), leaves.admin.cert.clone())
    }

    #[test]
    fn certificates_are_kept_and_renewed_when_names_change() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = ApiServerConfig::new(dir.path());
        let first = Pki::open(&config).unwrap();
        let again = Pki::open(&config).unwrap();
        assert_eq!(certs(&first), certs(&again));
        config.node_name = "other".into();
        let renamed = Pki::open(&config).unwrap();
        assert_ne!(certs(&first).0, certs(&renamed).0);
        assert_eq!(first.ca_pem(), renamed.ca_pem());
        renamed.tls_config().unwrap();
    }

    #[test]
    fn what_ends_soon_is_renewed_while_serving() {
        let dir = tempfile::tempdir().unwrap();
        let config = ApiServerConfig::new(dir.path());
        let pki = Pki::open(&config).unwrap();
        let first = certs(&pki);
        let shown = pki.leaves.load().shown.clone();
        let in_days = |days: i64| Timestamp::now() + jiff::SignedDuration::from_hours(24 * days);
        assert!(!pki.renew(in_days(LEAF_DAYS - RENEW_DAYS - 2)).unwrap());
        assert_eq!(certs(&pki), first);
        let late = in_days(LEAF_DAYS - RENEW_DAYS + 1);
        assert!(pki.renew(late).unwrap());
        let second = certs(&pki);
        assert!(first.0 != second.0 && first.1 != second.1);
        assert_ne!(pki.leaves.load().shown.cert, shown.cert);
        // Once is enough, and the next start finds them.
        assert!(!pki.renew(late).unwrap());
        assert_eq!(certs(&Pki::open(&config).unwrap()), second);
    }

    #[test]
    fn leaves_of_another_authority_are_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let config = ApiServerConfig::new(dir.path());
        let first = Pki::open(&config).unwrap();
        fs::remove_file(dir.path().join("pki/ca.key")).unwrap();
        let second = Pki::open(&config).unwrap();
        assert_ne!(first.ca_pem(), second.ca_pem());
        assert_ne!(certs(&first).1, certs(&second).1);
    }

    #[test]
    fn keys_are_private() {
        let dir = tempfile::tempdir().unwrap();
        Pki::open(&ApiServerConfig::new(dir.path())).unwrap();
        for entry in fs::read_dir(dir.path().join("pki")).unwrap() {
            let mode = entry.unwrap().metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }
}
