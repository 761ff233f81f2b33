//! Who sends a request.
//!
//! An identity comes from the client certificate of the connection and is worked out once per connection;
//! [`authenticate`] decides for every request. Nobody issues bearer tokens yet, so a token proves nothing.
//!
//! What is absent: authorization. Every authenticated user may do everything until RBAC rules exist; the identity
//! reaches every verb so that the rule can be asked there.

use cumulet_api::{Status, StatusReason};
use rustls::pki_types::CertificateDer;
use std::sync::Arc;
use x509_parser::prelude::{FromDer, X509Certificate};

/// A user, as Kubernetes names users.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// User name: the certificate's common name.
    pub user: String,
    /// Groups: the certificate's organizations, and `system:authenticated`.
    pub groups: Vec<String>,
}

impl Identity {
    /// The identity of a component inside this process.
    pub fn component(user: &str) -> Self {
        Self { user: user.to_owned(), groups: vec!["system:masters".into(), "system:authenticated".into()] }
    }

    /// The identity that a verified client certificate proves.
    pub(crate) fn from_certificate(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
        let subject = certificate.subject();
        let user = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
        let mut groups: Vec<String> =
            subject.iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_owned).collect();
        groups.push("system:authenticated".into());
        (!user.is_empty()).then_some(Self { user, groups })
    }
}

/// The identity of a request, or 401. This is where a bearer token of the request would be looked at, after the
/// certificate of the connection, which wins in Kubernetes too.
pub(crate) fn authenticate(connection: Option<&Arc<Identity>>) -> Result<Arc<Identity>, Status> {
    connection.cloned().ok_or_else(unauthorized)
}

fn unauthorized() -> Status {
    Status::new(StatusReason::Unauthorized, "Unauthorized")
}
