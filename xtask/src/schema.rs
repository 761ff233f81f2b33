//! `cargo xtask schema --from DIR`: makes the schema table of `crates/api/schema` from Kubernetes' Go sources.
//!
//! `DIR` holds `api` and `apimachinery` as in the Debian packages `golang-k8s-api-dev` and
//! `golang-k8s-apimachinery-dev` (below `/usr/share/gocode/src/k8s.io`). Written are `kubernetes.txt`, one line a field,
//! and `kubernetes-docs.txt`, the descriptions. The format is explained at the top of the first file; `api::schema`
//! reads it.
//!
//! The sources are formatted by gofmt and follow strict conventions, so they are read line by line. What does not fit
//! is an error, never skipped silently, except the types in [`LEFT_OUT`].

use anyhow::{Context, bail};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

/// Packages of the table: key, directory below `DIR`, OpenAPI prefix.
const PACKAGES: &[(&str, &str, &str)] = &[
    ("core.v1", "api/core/v1", "io.k8s.api.core.v1"),
    ("apps.v1", "api/apps/v1", "io.k8s.api.apps.v1"),
    ("batch.v1", "api/batch/v1", "io.k8s.api.batch.v1"),
    ("autoscaling.v1", "api/autoscaling/v1", "io.k8s.api.autoscaling.v1"),
    ("autoscaling.v2", "api/autoscaling/v2", "io.k8s.api.autoscaling.v2"),
    ("policy.v1", "api/policy/v1", "io.k8s.api.policy.v1"),
    ("networking.v1", "api/networking/v1", "io.k8s.api.networking.v1"),
    ("discovery.v1", "api/discovery/v1", "io.k8s.api.discovery.v1"),
    ("coordination.v1", "api/coordination/v1", "io.k8s.api.coordination.v1"),
    ("node.v1", "api/node/v1", "io.k8s.api.node.v1"),
    ("events.v1", "api/events/v1", "io.k8s.api.events.v1"),
    ("storage.v1", "api/storage/v1", "io.k8s.api.storage.v1"),
    ("rbac.v1", "api/rbac/v1", "io.k8s.api.rbac.v1"),
    ("scheduling.v1", "api/scheduling/v1", "io.k8s.api.scheduling.v1"),
    ("authentication.v1", "api/authentication/v1", "io.k8s.api.authentication.v1"),
    ("authorization.v1", "api/authorization/v1", "io.k8s.api.authorization.v1"),
    ("meta.v1", "apimachinery/pkg/apis/meta/v1", "io.k8s.apimachinery.pkg.apis.meta.v1"),
];

/// Types with a JSON form of their own; the table names them without a package.
const SCALARS: &[(&str, &str)] = &[
    ("resource.Quantity", "Quantity"),
    ("intstr.IntOrString", "IntOrString"),
    ("runtime.RawExtension", "RawExtension"),
    ("meta.v1.Time", "Time"),
    ("meta.v1.MicroTime", "MicroTime"),
    ("meta.v1.FieldsV1", "FieldsV1"),
    // Named strings of packages that the table does not hold.
    ("types.UID", "string"),
    ("types.NodeName", "string"),
    ("types.NamespacedName", "string"),
];

/// Types that no request body contains: tables are only ever written, the rest is Go's own machinery.
const LEFT_OUT: &[&str] =
    &["Table", "TableOptions", "TableRow", "TableRowCondition", "TableColumnDefinition"];

const HEADER: &str = "\
# Kubernetes' API types as a table, made by `cargo xtask schema` from the Go sources of k8s.io/api and
# k8s.io/apimachinery (Apache License 2.0). Do not edit.
#
# package KEY GROUP VERSION OPENAPI-PREFIX      GROUP is `-` for core
# alias   NAME TYPE [VALUE...]                  a named scalar, list or map, with its values if they are enumerated
# message NAME TYPE                             the same for a list that is a message of its own in protobuf
# type    NAME [kind] [atomic]                  `kind` when it stands for itself in a request body
#   JSON-NAME TAG TYPE [FLAG...]                a field; `<` for a struct whose fields stand inlined in JSON;
#                                               TAG is the protobuf field number, 0 if none; `*` before the type: pointer
# Flags: omitempty, omitzero, required (else optional), patch=STRATEGY,..., key=MERGE-KEY, list=atomic|set|map,
#        keys=LIST-MAP-KEY,..., atomic (map or struct), default=JSON
";

#[derive(Default)]
struct Field {
    name: String,
    tag: u32,
    ty: String,
    flags: String,
    doc: String,
}

#[derive(Default)]
struct Struct {
    kind: bool,
    atomic: bool,
    doc: String,
    fields: Vec<Field>,
}

#[derive(Default)]
struct Named {
    ty: String,
    /// A list that is wrapped in a message in protobuf.
    message: bool,
    /// Enumerated values with their docs; `None` for open strings.
    values: Option<BTreeMap<String, String>>,
    doc: String,
}

#[derive(Default)]
struct Tables {
    structs: Vec<(String, Struct)>,
    named: BTreeMap<String, Named>,
    /// `type A = B`
    synonyms: BTreeMap<String, String>,
}

/// Runs the task.
pub(crate) fn run(args: &[String]) -> anyhow::Result<()> {
    let [flag, from] = args else { bail!("usage: cargo xtask schema --from DIR") };
    if flag != "--from" {
        bail!("usage: cargo xtask schema --from DIR");
    }
    let mut tables = Tables::default();
    let mut packages = String::new();
    for (key, directory, prefix) in PACKAGES {
        let directory = Path::new(from).join(directory);
        let group = group_name(&directory)?;
        let version = key.rsplit('.').next().unwrap_or("v1");
        writeln!(packages, "package {key} {group} {version} {prefix}")?;
        let path = directory.join("types.go");
        let source =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Source::new(key, &source)?
            .read(&mut tables)
            .with_context(|| format!("cannot make sense of {}", path.display()))?;
    }
    let out = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/api/schema");
    std::fs::create_dir_all(&out)?;
    std::fs::write(out.join("kubernetes.txt"), format!("{HEADER}{packages}{}", table(&tables)?))?;
    std::fs::write(out.join("kubernetes-docs.txt"), docs(&tables))?;
    eprintln!("{} types, {} named scalars and lists", tables.structs.len(), tables.named.len());
    Ok(())
}

/// The API group, from `const GroupName = "..."`; `-` when empty.
fn group_name(directory: &Path) -> anyhow::Result<String> {
    let path = directory.join("register.go");
    let source = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let line = source.lines().find(|l| l.trim_start_matches("const ").starts_with("GroupName"));
    let name = line.and_then(|l| l.split('"').nth(1)).context("no GroupName in register.go")?;
    Ok(if name.is_empty() { "-".to_owned() } else { name.to_owned() })
}

/// One Go file being read.
struct Source<'a> {
    package: &'a str,
    lines: Vec<&'a str>,
    /// Import name → package key of the table (or `resource`, `types`, ...).
    imports: BTreeMap<String, String>,
}

impl<'a> Source<'a> {
    fn new(package: &'a str, text: &'a str) -> anyhow::Result<Self> {
        let mut imports = BTreeMap::new();
        let block = text.split("import (").nth(1).and_then(|t| t.split(')').next()).unwrap_or("");
        for line in block.lines().map(str::trim).filter(|l| l.ends_with('"')) {
            let (alias, path) = line.split_once('"').context("an import without a path")?;
            let path = path.trim_end_matches('"');
            let last = path.rsplit('/').next().unwrap_or(path);
            let alias = if alias.trim().is_empty() { last } else { alias.trim() };
            let key = PACKAGES
                .iter()
                .find(|(_, directory, _)| path.strip_prefix("k8s.io/") == Some(directory))
                .map_or(last, |(key, ..)| key);
            imports.insert(alias.to_owned(), key.to_owned());
        }
        Ok(Self { package, lines: text.lines().collect(), imports })
    }

    fn read(&self, tables: &mut Tables) -> anyhow::Result<()> {
        let mut comment: Vec<&str> = Vec::new();
        let mut i = 0;
        while i < self.lines.len() {
            let line = self.lines[i];
            i += 1;
            if let Some(text) = line.strip_prefix("//") {
                comment.push(text);
            } else if let Some(rest) = line.strip_prefix("type ") {
                i = self
                    .declaration(rest, &comment, i, tables)
                    .with_context(|| format!("line {i}: {line}"))?;
                comment.clear();
            } else if line == "const (" {
                i = self.constants(i, tables);
                comment.clear();
            } else if !line.is_empty() || comment.last().is_some_and(|l| !l.trim_start().starts_with('+')) {
                // Markers may stand apart from the declaration by an empty line, descriptions may not.
                comment.clear();
            }
        }
        Ok(())
    }

    fn declaration(
        &self,
        rest: &str,
        comment: &[&str],
        mut i: usize,
        tables: &mut Tables,
    ) -> anyhow::Result<usize> {
        let (name, rest) = rest.split_once(' ').context("a type without a definition")?;
        let full = format!("{}.{name}", self.package);
        if rest.starts_with("struct") {
            let mut found = Struct { doc: description(comment), ..Struct::default() };
            found.atomic = marker(comment, "structType") == Some("atomic");
            if rest.ends_with('{') {
                i = self.fields(i, &mut found)?;
            }
            let scalar = SCALARS.iter().any(|(go, _)| *go == full);
            if !scalar && !LEFT_OUT.contains(&name) && name != "TypeMeta" {
                tables.structs.push((full, found));
            }
        } else if rest.starts_with("interface") {
            bail!("an interface");
        } else if let Some(target) = rest.strip_prefix("= ") {
            tables.synonyms.insert(full, self.resolve(target)?);
        } else {
            let ty = self.resolve(rest.split(" //").next().unwrap_or(rest))?;
            let message = comment.iter().any(|l| l.trim() == "+protobuf.nullable=true");
            let values = comment.iter().any(|l| l.trim() == "+enum").then(BTreeMap::new);
            tables.named.insert(full, Named { ty, message, values, doc: description(comment) });
        }
        Ok(i)
    }

    /// Reads the fields of a struct up to the closing brace; returns the line behind it.
    fn fields(&self, mut i: usize, into: &mut Struct) -> anyhow::Result<usize> {
        let mut comment: Vec<&str> = Vec::new();
        loop {
            let line = *self.lines.get(i).context("a struct without an end")?;
            i += 1;
            let text = line.trim();
            if line == "}" {
                return Ok(i);
            } else if let Some(text) = text.strip_prefix("//") {
                comment.push(text);
            } else if text.is_empty() {
                if !comment.iter().any(|l| l.trim().starts_with('+')) {
                    comment.clear();
                }
            } else {
                let field = self.field(text, &comment).with_context(|| format!("line {i}: {text}"))?;
                comment.clear();
                match field {
                    Some(field) if field.ty == "meta.v1.TypeMeta" => {
                        into.kind = true;
                        into.fields.extend(type_meta());
                    }
                    Some(field) => into.fields.push(field),
                    None => {}
                }
            }
        }
    }

    fn field(&self, text: &str, comment: &[&str]) -> anyhow::Result<Option<Field>> {
        let (head, tags) = match text.split_once('`') {
            Some((head, tags)) => (head, tags.split('`').next().unwrap_or("")),
            None => (text, ""),
        };
        let ty = head.split_whitespace().last().context("a field without a type")?;
        let mut json = tag(tags, "json").unwrap_or("").split(',');
        let name = json.next().unwrap_or("");
        let options: Vec<&str> = json.collect();
        if name == "-" || tags.is_empty() || ty.contains("interface{}") {
            return Ok(None);
        }
        let inline = options.contains(&"inline");
        let mut ty = self.resolve(ty)?;
        if let Some(bare) = ty.strip_prefix("*[]") {
            ty = format!("[]{bare}");
        }
        let mut flags = Vec::new();
        for option in ["omitempty", "omitzero"] {
            if options.contains(&option) {
                flags.push(option.to_owned());
            }
        }
        let has = |name: &str| comment.iter().any(|l| l.trim() == name);
        if has("+required") || !(has("+optional") || has("+k8s:optional") || !flags.is_empty() || inline) {
            flags.push("required".to_owned());
        }
        let mut add = |key: &str, value: Option<&str>| {
            if let Some(value) = value {
                flags.push(format!("{key}={value}"));
            }
        };
        add("patch", tag(tags, "patchStrategy"));
        add("key", tag(tags, "patchMergeKey"));
        add("list", marker(comment, "listType"));
        let keys: Vec<&str> = comment.iter().filter_map(|l| l.trim().strip_prefix("+listMapKey=")).collect();
        add("keys", (!keys.is_empty()).then(|| keys.join(",")).as_deref());
        add("default", marker(comment, "default").filter(|v| !v.contains(' ') && !v.starts_with("ref(")));
        if marker(comment, "mapType") == Some("atomic") || marker(comment, "structType") == Some("atomic") {
            flags.push("atomic".to_owned());
        }
        let number = tag(tags, "protobuf").and_then(|t| t.split(',').nth(1)).unwrap_or("0");
        Ok(Some(Field {
            name: if inline { "<" } else { name }.to_owned(),
            tag: number.parse().context("a protobuf tag that is no number")?,
            ty,
            flags: flags.join(" "),
            doc: description(comment),
        }))
    }

    /// A Go type in the table's spelling.
    fn resolve(&self, ty: &str) -> anyhow::Result<String> {
        for prefix in ["*", "[]"] {
            if let Some(rest) = ty.strip_prefix(prefix).filter(|_| ty != "[]byte") {
                return Ok(format!("{prefix}{}", self.resolve(rest)?));
            }
        }
        if let Some(rest) = ty.strip_prefix("map[") {
            // All maps of the API have strings, or named strings, as keys.
            let (_, value) = rest.split_once(']').context("a map without a value")?;
            return Ok(format!("map[string]{}", self.resolve(value)?));
        }
        if matches!(ty, "string" | "bool" | "int32" | "int64" | "float64" | "[]byte") {
            return Ok(ty.replace("float64", "double").replace("[]byte", "bytes"));
        }
        let full = match ty.split_once('.') {
            Some((import, name)) => {
                format!("{}.{name}", self.imports.get(import).context("an unknown import")?)
            }
            None if ty.chars().all(char::is_alphanumeric) => format!("{}.{ty}", self.package),
            None => bail!("type {ty:?} is not understood"),
        };
        Ok(SCALARS.iter().find(|(go, _)| *go == full).map_or(full, |(_, name)| (*name).to_owned()))
    }

    /// Reads a block of constants and notes the values of enumerations; returns the line behind it.
    fn constants(&self, mut i: usize, tables: &mut Tables) -> usize {
        let mut comment: Vec<&str> = Vec::new();
        while i < self.lines.len() && self.lines[i] != ")" {
            let text = self.lines[i].trim();
            i += 1;
            if let Some(text) = text.strip_prefix("//") {
                comment.push(text);
                continue;
            }
            let words: Vec<&str> = text.split_whitespace().collect();
            if let [_, ty, "=", value, ..] = words[..] {
                let named = tables.named.get_mut(&format!("{}.{ty}", self.package));
                if let Some(values) = named.and_then(|n| n.values.as_mut()) {
                    values.insert(value.trim_matches('"').to_owned(), description(&comment));
                }
            }
            comment.clear();
        }
        i + 1
    }
}

fn type_meta() -> [Field; 2] {
    let field = |name: &str, doc: &str| Field {
        name: name.to_owned(),
        ty: "string".to_owned(),
        flags: "omitempty".to_owned(),
        doc: doc.to_owned(),
        ..Field::default()
    };
    let more =
        "More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md";
    [
        field(
            "kind",
            &format!(
                "Kind is a string value representing the REST resource this object represents. Servers may infer this \
                 from the endpoint the client submits requests to. Cannot be updated. In CamelCase. {more}#types-kinds"
            ),
        ),
        field(
            "apiVersion",
            &format!(
                "APIVersion defines the versioned schema of this representation of an object. Servers should convert \
                 recognized schemas to the latest internal value, and may reject unrecognized values. {more}#resources"
            ),
        ),
    ]
}

/// The value of `key:"value"` in a field's tags.
fn tag<'a>(tags: &'a str, key: &str) -> Option<&'a str> {
    let start = format!("{key}:\"");
    let at =
        tags.match_indices(&start).map(|(at, _)| at).find(|at| *at == 0 || tags[..*at].ends_with(' '))?;
    tags[at + start.len()..].split('"').next()
}

/// The value of `+key=value` in a comment.
fn marker<'a>(comment: &[&'a str], key: &str) -> Option<&'a str> {
    comment.iter().find_map(|l| l.trim().strip_prefix('+')?.strip_prefix(key)?.strip_prefix('='))
}

/// The description in a comment as Kubernetes publishes it: paragraphs joined, markers and TODOs left out.
fn description(comment: &[&str]) -> String {
    let mut out = String::new();
    for line in comment {
        let line = line.strip_prefix(' ').unwrap_or(line).trim_end();
        let text = line.trim_start();
        if text == "---" {
            break;
        }
        if text.is_empty() {
            out.truncate(out.trim_end().len());
            out.push_str("\n\n");
        } else if text.starts_with('+') || text.starts_with("TODO") {
        } else if line.starts_with([' ', '\t']) {
            out.truncate(out.trim_end_matches(' ').len());
            if !out.ends_with('\n') {
                out.push('\n');
            }
            out.push_str(line);
            out.push('\n');
        } else {
            out.push_str(line);
            out.push(' ');
        }
    }
    out.trim().to_owned()
}

fn table(tables: &Tables) -> anyhow::Result<String> {
    let mut out = String::new();
    for (name, named) in &tables.named {
        if tables.structs.iter().any(|(s, _)| *s == named.ty) {
            continue;
        }
        let word = if named.message { "message" } else { "alias" };
        write!(out, "{word} {name} {}", named.ty)?;
        for value in named.values.iter().flatten().map(|(value, _)| value) {
            write!(out, " {}", if value.is_empty() { "\"\"" } else { value })?;
        }
        out.push('\n');
    }
    for (name, found) in &tables.structs {
        write_type(&mut out, tables, name, found)?;
    }
    // A struct under a second name (core/v1 List) is a type of its own.
    for (name, named) in &tables.named {
        if let Some((_, found)) = tables.structs.iter().find(|(s, _)| *s == named.ty) {
            write_type(&mut out, tables, name, found)?;
        }
    }
    Ok(out)
}

fn write_type(out: &mut String, tables: &Tables, name: &str, found: &Struct) -> anyhow::Result<()> {
    let kind = if found.kind { " kind" } else { "" };
    let atomic = if found.atomic { " atomic" } else { "" };
    writeln!(out, "type {name}{kind}{atomic}")?;
    for field in &found.fields {
        let ty = known(tables, &field.ty).with_context(|| format!("field {} of {name}", field.name))?;
        writeln!(out, "  {}", format!("{} {} {ty} {}", field.name, field.tag, field.flags).trim_end())?;
    }
    Ok(())
}

/// The type with synonyms replaced; an error when the table does not hold it.
fn known(tables: &Tables, ty: &str) -> anyhow::Result<String> {
    for prefix in ["*", "[]", "map[string]"] {
        if let Some(rest) = ty.strip_prefix(prefix) {
            return Ok(format!("{prefix}{}", known(tables, rest)?));
        }
    }
    if let Some(target) = tables.synonyms.get(ty) {
        return known(tables, target);
    }
    let scalar = matches!(ty, "string" | "bool" | "int32" | "int64" | "double" | "bytes")
        || SCALARS.iter().any(|(_, name)| *name == ty);
    if !scalar && !tables.named.contains_key(ty) && !tables.structs.iter().any(|(name, _)| name == ty) {
        bail!("type {ty:?} is not in the table");
    }
    Ok(ty.to_owned())
}

/// The docs file: `= TYPE TEXT`, then `FIELD TEXT` for each field (or value) that has one; newlines as `\n`.
fn docs(tables: &Tables) -> String {
    let mut out = String::new();
    let mut line = |head: &str, doc: &str| {
        if head.starts_with('=') || !doc.is_empty() {
            out.push_str(head);
            out.push(' ');
            out.push_str(&doc.replace('\\', "\\\\").replace('\n', "\\n"));
            out.push('\n');
        }
    };
    for (name, found) in &tables.structs {
        line(&format!("= {name}"), &found.doc);
        found.fields.iter().for_each(|f| line(&f.name, &f.doc));
    }
    for (name, named) in &tables.named {
        match tables.structs.iter().find(|(s, _)| *s == named.ty) {
            Some((_, found)) => {
                line(&format!("= {name}"), &named.doc);
                found.fields.iter().for_each(|f| line(&f.name, &f.doc));
            }
            None if named.values.is_some() => {
                line(&format!("= {name}"), &named.doc);
                named
                    .values
                    .iter()
                    .flatten()
                    .for_each(|(v, doc)| line(if v.is_empty() { "\"\"" } else { v }, doc));
            }
            None => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_struct() {
        let source = r#"
import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Thing is a thing.
// +structType=atomic
type Thing struct {
	metav1.TypeMeta `json:",inline"`
	// Parts it has.
	//
	// TODO: more
	// +optional
	// +listType=map
	// +listMapKey=name
	Parts []Part `json:"parts,omitempty" patchStrategy:"merge" patchMergeKey:"name" protobuf:"bytes,3,rep,name=parts"`
	Size *int32 `json:"size" protobuf:"varint,1,opt,name=size"`
}
type Part struct{}
"#;
        let mut tables = Tables::default();
        Source::new("core.v1", source).and_then(|s| s.read(&mut tables)).expect("a good source");
        assert_eq!(
            table(&tables).expect("complete"),
            "type core.v1.Thing kind atomic\n  kind 0 string omitempty\n  apiVersion 0 string omitempty\n  parts 3 \
             []core.v1.Part omitempty patch=merge key=name list=map keys=name\n  size 1 *int32 required\ntype core.v1.Part\n"
        );
        assert_eq!(tables.structs[0].1.fields[2].doc, "Parts it has.");
    }
}
