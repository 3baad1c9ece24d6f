//! Records of another build's maps, read by the names of their fields: where a field is and how long it is, the BTF
//! that the kernel keeps with the programs says.

use std::marker::PhantomData;

use libbpf_rs::btf::types::{Array, Enum, Int, MemberAttr, Struct};
use libbpf_rs::btf::{Btf, BtfType, HasSize, TypeId};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// A struct of another build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StructLayout {
    name: &'static str,
    pub(crate) size: usize,
    fields: Vec<(String, FieldLayout)>,
}

/// Where a field is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FieldLayout {
    offset: usize,
    size: usize,
}

impl StructLayout {
    pub(crate) fn of(btf: &Btf<'_>, name: &'static str) -> Result<Self, String> {
        let found: Struct<'_> =
            btf.type_by_name(name).ok_or_else(|| format!("it has no struct {name}"))?;
        let mut fields = Vec::new();
        for member in found.iter() {
            let MemberAttr::Normal { offset } = member.attr else { continue };
            let (Some(field), Some(size)) = (member.name, size_of_type(btf, member.ty)) else {
                continue;
            };
            let place = FieldLayout { offset: offset as usize / 8, size };
            fields.push((field.to_string_lossy().into_owned(), place));
        }
        Ok(Self { name, size: found.size(), fields })
    }

    fn place(&self, field: &str) -> Result<FieldLayout, String> {
        let found = self.fields.iter().find(|(name, _)| name == field);
        let place = found.map(|(_, place)| *place);
        place
            .filter(|place| place.offset + place.size <= self.size)
            .ok_or_else(|| format!("its struct {} has no field {field}", self.name))
    }

    /// Where a number of 32 bits is.
    pub(crate) fn number(&self, field: &str) -> Result<Number, String> {
        let FieldLayout { offset, size } = self.place(field)?;
        match size == size_of::<u32>() {
            true => Ok(Number(offset)),
            false => Err(format!("field {field} of its struct {} has {size} bytes", self.name)),
        }
    }
}

/// The place of a number in a record.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Number(usize);

impl Number {
    /// 0 where the record is too short.
    pub(crate) fn of(self, record: &[u8]) -> u32 {
        let bytes = record.get(self.0..self.0 + size_of::<u32>());
        bytes.and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes).unwrap_or_default()
    }

    pub(crate) fn set(self, record: &mut [u8], number: u32) {
        if let Some(to) = record.get_mut(self.0..self.0 + size_of::<u32>()) {
            to.copy_from_slice(&number.to_ne_bytes());
        }
    }
}

fn size_of_type(btf: &Btf<'_>, id: TypeId) -> Option<usize> {
    let ty = btf.type_by_id::<BtfType<'_>>(id)?.skip_mods_and_typedefs();
    let id = ty.type_id();
    if let Some(array) = btf.type_by_id::<Array<'_>>(id) {
        return Some(array.capacity() * size_of_type(btf, array.contained_type().type_id())?);
    }
    None.or_else(|| btf.type_by_id::<Int<'_>>(id).map(|t| t.size()))
        .or_else(|| btf.type_by_id::<Struct<'_>>(id).map(|t| t.size()))
        .or_else(|| btf.type_by_id::<Enum<'_>>(id).map(|t| t.size()))
}

/// From records of another build to this one's. Fields that this build does not know are left out; those that it
/// needs must be there.
#[derive(Clone, Debug)]
pub(crate) struct Conversion<T> {
    moves: Vec<(&'static str, FieldLayout, FieldLayout)>,
    to: PhantomData<fn() -> T>,
}

impl<T: FromBytes + IntoBytes + Immutable> Conversion<T> {
    /// `fields`: name, and offset and size in this build's record.
    pub(crate) fn new(
        from: &StructLayout,
        fields: &[(&'static str, usize, usize)],
    ) -> Result<Self, String> {
        let mut moves = Vec::with_capacity(fields.len());
        for &(name, offset, size) in fields {
            let place = from.place(name)?;
            // Text and lists may have another room; a number of another size would be another number.
            if place.size != size && place.size.min(size) <= size_of::<u64>() {
                let FieldLayout { size: found, .. } = place;
                let name_of = from.name;
                return Err(format!(
                    "field {name} of its struct {name_of} has {found} bytes, here {size}"
                ));
            }
            moves.push((name, place, FieldLayout { offset, size }));
        }
        Ok(Self { moves, to: PhantomData })
    }

    /// Fails where something does not fit.
    pub(crate) fn of(&self, record: &[u8]) -> Result<T, String> {
        let mut to = T::new_zeroed();
        for (name, from, into) in &self.moves {
            let from = record.get(from.offset..from.offset + from.size);
            let into = to.as_mut_bytes().get_mut(into.offset..into.offset + into.size);
            let (Some(from), Some(into)) = (from, into) else {
                return Err(format!("a record is too short for {name}"));
            };
            let common = from.len().min(into.len());
            let (here, rest) = from.split_at(common);
            if rest.iter().any(|byte| *byte != 0) {
                return Err(format!("{name} is longer than {} bytes", into.len()));
            }
            into[..common].copy_from_slice(here);
        }
        Ok(to)
    }
}

/// A [`Conversion`] of the fields named.
macro_rules! conversion {
    ($layout:expr => $record:ident { $($field:ident),* $(,)? }) => {{
        let zero: $record = zerocopy::FromZeros::new_zeroed();
        $crate::record::Conversion::<$record>::new($layout, &[
            $((stringify!($field), std::mem::offset_of!($record, $field), size_of_val(&zero.$field)),)*
        ])
    }};
}
pub(crate) use conversion;
