//! The API's types as text: fields, and what their comments say of them, read from the source of the contract.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

use syn::{Attribute, Expr, Fields, GenericArgument, Item, Lit, PathArguments, Type};

/// The public types of the contract's API, by name.
pub(super) struct Types(BTreeMap<String, Item>);

/// What serde's attributes say of a type, a variant or a field.
#[derive(Default)]
struct Serde {
    case: Option<Case>,
    flatten: bool,
    optional: bool,
    tag: Option<String>,
    alias: Option<String>,
}

/// How the names of variants are written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Case {
    Lower,
    Kebab,
}

impl Types {
    pub(super) fn read() -> Self {
        let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("contract/src");
        let mut files: Vec<PathBuf> = vec![src.join("api.rs")];
        files.extend(fs::read_dir(src.join("api")).unwrap().map(|entry| entry.unwrap().path()));
        let mut types = BTreeMap::new();
        for file in files {
            let text = fs::read_to_string(&file).unwrap();
            for item in syn::parse_file(&text).unwrap().items {
                let name = match &item {
                    Item::Struct(of) => of.ident.to_string(),
                    Item::Enum(of) => of.ident.to_string(),
                    _ => continue,
                };
                types.insert(name, item);
            }
        }
        Self(types)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// The section of a type, and the types that it names.
    pub(super) fn section(&self, name: &str) -> (String, Vec<String>) {
        let mut named = Vec::new();
        let mut text = format!("### {name}\n\n");
        match &self.0[name] {
            Item::Struct(of) => {
                writeln!(text, "{}\n", doc(&of.attrs)).unwrap();
                self.fields(&mut text, &mut named, &of.fields);
            }
            Item::Enum(of) => {
                let serde = Serde::of(&of.attrs);
                let case = serde.case.unwrap_or_else(|| panic!("{name}: values are in lower case"));
                writeln!(text, "{}\n", doc(&of.attrs)).unwrap();
                for variant in &of.variants {
                    let value = case.written(&variant.ident.to_string());
                    let (meaning, tag) = (doc(&variant.attrs), serde.tag.as_deref());
                    let also = Serde::of(&variant.attrs).alias;
                    let also = also.map(|alias| format!(" (or `\"{alias}\"`)")).unwrap_or_default();
                    match (&variant.fields, tag) {
                        (Fields::Unit, None) => writeln!(text, "- `\"{value}\"`{also}: {meaning}"),
                        (_, Some(tag)) => {
                            writeln!(text, "With `\"{tag}\": \"{value}\"`: {meaning}\n")
                        }
                        (_, None) => {
                            writeln!(text, "\nAn object `{{\"{value}\": ...}}`: {meaning}\n")
                        }
                    }
                    .unwrap();
                    if !matches!(variant.fields, Fields::Unit) {
                        self.fields(&mut text, &mut named, &variant.fields);
                        text.push('\n');
                    }
                }
            }
            _ => unreachable!("only these are kept"),
        }
        (text.trim_end().to_owned() + "\n\n", named)
    }

    fn fields(&self, text: &mut String, named: &mut Vec<String>, fields: &Fields) {
        text.push_str("| field | type | meaning |\n|---|---|---|\n");
        for field in fields {
            let (name, serde) = (field.ident.as_ref().unwrap(), Serde::of(&field.attrs));
            let (spelled, of_option) = self.spell(&field.ty, named);
            let meaning = doc(&field.attrs);
            if serde.flatten {
                writeln!(text, "| | {spelled} | its fields are part of this object |").unwrap();
                continue;
            }
            let optional = if of_option || serde.optional { ", may be absent" } else { "" };
            writeln!(text, "| `{name}` | {spelled}{optional} | {meaning} |").unwrap();
        }
    }

    /// A type in words, and whether it is an `Option`.
    fn spell(&self, ty: &Type, named: &mut Vec<String>) -> (String, bool) {
        let Type::Path(path) = ty else { panic!("the document has no words for this type") };
        let segment = path.path.segments.last().unwrap();
        let inner = match &segment.arguments {
            PathArguments::AngleBracketed(of) => of.args.first(),
            _ => None,
        };
        let inner = match inner {
            Some(GenericArgument::Type(inner)) => Some(self.spell(inner, named).0),
            _ => None,
        };
        let name = segment.ident.to_string();
        let spelled = match (name.as_str(), inner) {
            ("Option", Some(inner)) => return (inner, true),
            ("Vec", Some(inner)) => format!("list of {inner}"),
            ("BTreeMap", Some(inner)) => format!("object, each value a {inner}"),
            ("String", None) => "string".to_owned(),
            ("bool", None) => "true or false".to_owned(),
            ("u8" | "u16" | "u32" | "u64" | "usize" | "f64", None) => "number".to_owned(),
            ("IpAddr", None) => "IP address".to_owned(),
            (name, None) if self.0.contains_key(name) => {
                named.push(name.to_owned());
                link(name)
            }
            (name, _) => panic!("the document has no words for {name}"),
        };
        (spelled, false)
    }
}

/// A link to a type's section.
pub(super) fn link(name: &str) -> String {
    format!("[{name}](#{})", name.to_lowercase())
}

impl Case {
    /// The name of a variant as serde writes it.
    fn written(self, variant: &str) -> String {
        let dashed = variant.chars().enumerate().flat_map(|(nth, of)| {
            let dash = self == Self::Kebab && nth > 0 && of.is_uppercase();
            dash.then_some('-').into_iter().chain(of.to_lowercase())
        });
        dashed.collect()
    }
}

impl Serde {
    fn of(attrs: &[Attribute]) -> Self {
        let mut serde = Self::default();
        for attr in attrs.iter().filter(|attr| attr.path().is_ident("serde")) {
            attr.parse_nested_meta(|meta| {
                let key = meta.path.get_ident().unwrap().to_string();
                let value = match meta.value() {
                    Ok(value) => value.parse::<syn::LitStr>()?.value(),
                    Err(_) => String::new(),
                };
                match key.as_str() {
                    "rename_all" if value == "lowercase" => serde.case = Some(Case::Lower),
                    "rename_all" if value == "kebab-case" => serde.case = Some(Case::Kebab),
                    "flatten" => serde.flatten = true,
                    "skip_serializing_if" => serde.optional = true,
                    "tag" => serde.tag = Some(value),
                    "alias" => serde.alias = Some(value),
                    // neither changes how a field is written
                    "default" | "deny_unknown_fields" => {}
                    other => panic!("the document does not know serde's {other}"),
                }
                Ok(())
            })
            .unwrap();
        }
        serde
    }
}

/// A doc comment, as one line of a table.
fn doc(attrs: &[Attribute]) -> String {
    let lines = attrs.iter().filter_map(|attr| match &attr.meta {
        syn::Meta::NameValue(of) if of.path.is_ident("doc") => match &of.value {
            Expr::Lit(lit) => match &lit.lit {
                Lit::Str(text) => Some(text.value().trim().to_owned()),
                _ => None,
            },
            _ => None,
        },
        _ => None,
    });
    lines.collect::<Vec<_>>().join(" ").replace('|', "\\|")
}
