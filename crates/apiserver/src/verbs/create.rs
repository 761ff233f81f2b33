//! Create.
//!
//! Order, as in Kubernetes: namespace, defaults, admission, system metadata, generated name, allocation, strategy,
//! validation, commit. What was allocated is given back unless the commit succeeds.

use crate::admission;
use crate::core::{Call, Core, create_op};
use crate::object::{body, rules};
use crate::row::Allocation;
use bytes::Bytes;
use cumulet_api::{Status, StatusReason, meta};
use rand::RngExt;
use serde_json::{Map, Value};

/// How often a generated name is tried again when it is taken.
const NAME_ATTEMPTS: usize = 8;
/// Longest generated name before the random characters, in bytes.
const GENERATED_BASE_MAX: usize = 58;
/// Random characters of a generated name.
const GENERATED_LENGTH: usize = 5;
/// No vowels and nothing that looks like another character, as Kubernetes has it.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

impl Core {
    /// Creates an object and returns it as stored. For a dry run, as it would be stored.
    pub(crate) async fn create(&self, call: &Call<'_>, object: Value) -> Result<Bytes, Status> {
        let generated = meta::name(&object).is_empty() && !meta::generate_name(&object).is_empty();
        for _ in 1..NAME_ATTEMPTS {
            match self.create_once(call, object.clone()).await {
                Err(status) if generated && status.is_already_exists() => {}
                result => return result,
            }
        }
        self.create_once(call, object).await
    }

    async fn create_once(&self, call: &Call<'_>, mut object: Value) -> Result<Bytes, Status> {
        let row = call.resource.row;
        if !meta::resource_version(&object).is_empty() {
            return Err(Status::new(
                StatusReason::InternalError,
                "resourceVersion should not be set on objects to be created",
            ));
        }
        namespace(call, &mut object)?;
        row.strategy.default(&mut object);
        admission::admit_create(self, call, &mut object)?;
        system_metadata(&mut object);
        let reservation = match row.strategy.allocation() {
            Allocation::None => None,
            // Taken back when it is dropped: a dry run or a failure keeps nothing.
            Allocation::Service => Some(
                self.services
                    .reserve(&mut object, None)
                    .map_err(|e| Status::invalid(row.group, row.kind, meta::name(&object), &[e]))?,
            ),
        };
        row.strategy.prepare_create(&mut object);
        let mut errors = rules::validate(row, &object);
        errors.extend(row.strategy.validate(&object));
        if !errors.is_empty() {
            return Err(Status::invalid(row.group, row.kind, meta::name(&object), &errors));
        }
        let key = call.key_of(meta::name(&object));
        if call.dry_run {
            return match self.store.get(&key) {
                Some(_) => Err(Status::already_exists(row.group, row.plural, &key.name)),
                None => Ok(body::encode_detached(&object)),
            };
        }
        let stored = self.commit(call, create_op(key, &object)).await.map_err(|e| e.unwrap_or_else(busy))?;
        if let Some(reservation) = reservation {
            reservation.commit();
        }
        Ok(stored)
    }
}

/// A create cannot lose a race other than for its name.
fn busy() -> Status {
    Status::new(StatusReason::ServerTimeout, "the server could not complete the request; please try again")
}

/// Puts the object into the namespace of the request.
fn namespace(call: &Call<'_>, object: &mut Value) -> Result<(), Status> {
    let own = meta::namespace(object).to_owned();
    match call.namespace {
        None => meta::set_text(object, "namespace", ""),
        Some(namespace) if own.is_empty() => meta::set_text(object, "namespace", namespace),
        Some(namespace) if own == namespace => {}
        Some(_) => {
            return Err(Status::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
    }
    Ok(())
}

/// Metadata that only the server sets.
fn system_metadata(object: &mut Value) {
    let generate_name = meta::generate_name(object).to_owned();
    let unnamed = meta::name(object).is_empty();
    let Some(metadata) = meta::metadata_mut(object) else { return };
    for field in SERVER_FIELDS {
        metadata.remove(*field);
    }
    metadata.insert("uid".into(), uuid::Uuid::new_v4().to_string().into());
    metadata.insert("creationTimestamp".into(), meta::time(jiff::Timestamp::now()).into());
    if unnamed && !generate_name.is_empty() {
        metadata.insert("name".into(), generated(&generate_name).into());
    }
    drop_empty(metadata);
}

/// Metadata that a client cannot set on a new object.
const SERVER_FIELDS: &[&str] = &[
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "selfLink",
    "managedFields",
    "generation",
    "resourceVersion",
];

/// Empty maps and lists in metadata are left out, as Go's encoder does.
pub(crate) fn drop_empty(metadata: &mut Map<String, Value>) {
    metadata.retain(|_, value| match value {
        Value::Null => false,
        Value::Object(map) => !map.is_empty(),
        Value::Array(list) => !list.is_empty(),
        _ => true,
    });
}

/// The base, shortened so that the name stays a label, with random characters behind it.
fn generated(base: &str) -> String {
    let mut end = base.len().min(GENERATED_BASE_MAX);
    while !base.is_char_boundary(end) {
        end -= 1;
    }
    let mut name = base[..end].to_owned();
    let mut random = rand::rng();
    for _ in 0..GENERATED_LENGTH {
        name.push(char::from(ALPHABET[random.random_range(0..ALPHABET.len())]));
    }
    name
}
