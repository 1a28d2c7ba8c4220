//! The table language: one line a field, from which struct, default, decode and encode are made.
//!
//!     Name<'a> {
//!         field: Type = default, versions [, null versions] [, tag number in versions];
//!     }
//!
//! A field outside its versions is neither read nor written and has its default. A tagged field is
//! written only when it differs from its default (KIP-482); unknown tags are skipped.

/// See the module's documentation.
macro_rules! messages {
    ($($name:ident $(<$life:lifetime>)? { $($fields:tt)* })*) => {
        $($crate::wire::message::message! { $name [$($life)?] $($fields)* })*
    };
}

macro_rules! message {
    ($name:ident [$($life:lifetime)?] $(
        $field:ident : $type:ty = $default:expr, $versions:expr
        $(, null $null:expr)? $(, tag $tag:literal in $tagged:expr)?;
    )*) => {
        #[derive(Clone, Debug, PartialEq)]
        pub struct $name $(<$life>)? {
            $(pub $field: $type,)*
        }

        impl $(<$life>)? Default for $name $(<$life>)? {
            fn default() -> Self {
                $name { $($field: $default,)* }
            }
        }

        impl<'a> $crate::wire::primitive::Wire<'a> for $name $(<$life>)? {
            #[allow(unused_mut, unused_variables, clippy::reversed_empty_ranges)]
            fn decode(
                reader: &mut $crate::wire::primitive::Reader<'a>,
                context: $crate::wire::primitive::Context,
            ) -> Result<Self, $crate::wire::primitive::DecodeError> {
                let mut message = Self::default();
                $($crate::wire::message::decode_field! {
                    message.$field, reader, context, $versions
                    $(, null $null)? $(, tag $tag in $tagged)?
                })*
                if context.flexible {
                    for _ in 0..reader.unsigned_varint()? {
                        let tag = reader.unsigned_varint()?;
                        let length = reader.unsigned_varint()?;
                        let length = usize::try_from(length).unwrap_or(usize::MAX);
                        let mut value = $crate::wire::primitive::Reader::new(reader.take(length)?);
                        $($(
                            if tag == $tag && ($tagged).contains(&context.version) {
                                message.$field =
                                    $crate::wire::primitive::Wire::decode(&mut value, context)
                                        .map_err(|error| error.within(stringify!($field)))?;
                            }
                        )?)*
                    }
                }
                Ok(message)
            }

            #[allow(unused_mut, unused_variables)]
            fn encode(
                &self,
                out: &mut bytes::BytesMut,
                context: $crate::wire::primitive::Context,
            ) {
                $($crate::wire::message::encode_field! {
                    self.$field, out, context, $versions
                    $(, null $null)? $(, tag $tag in $tagged)?
                })*
                if context.flexible {
                    let default = Self::default();
                    let mut count = 0_u32;
                    $($(
                        let set = ($tagged).contains(&context.version)
                            && self.$field != default.$field;
                        count += u32::from(set);
                    )?)*
                    $crate::wire::primitive::put_unsigned_varint(out, count);
                    $($(
                        if ($tagged).contains(&context.version) && self.$field != default.$field {
                            let mut value = bytes::BytesMut::new();
                            $crate::wire::primitive::Wire::encode(
                                &self.$field, &mut value, context,
                            );
                            let length = u32::try_from(value.len()).unwrap_or(u32::MAX);
                            $crate::wire::primitive::put_unsigned_varint(out, $tag);
                            $crate::wire::primitive::put_unsigned_varint(out, length);
                            out.extend_from_slice(&value);
                        }
                    )?)*
                }
            }
        }

        #[cfg(test)]
        impl<'a> $crate::wire::oracle::Arbitrary<'a> for $name $(<$life>)? {
            fn arbitrary(source: &mut $crate::wire::oracle::Source<'a>) -> Self {
                let mut message = Self::default();
                $($crate::wire::message::arbitrary_field! {
                    message.$field, source, $versions $(, null $null)? $(, tag $tag in $tagged)?
                })*
                message
            }
        }
    };
}

macro_rules! decode_field {
    ($place:expr, $reader:ident, $context:ident, $versions:expr
        $(, null $null:expr)?, tag $tag:literal in $tagged:expr) => {};
    (
        $message:ident.$field:ident, $reader:ident, $context:ident, $versions:expr, null $null:expr
    ) => {
        if ($versions).contains(&$context.version) {
            $message.$field = $crate::wire::primitive::Wire::decode($reader, $context)
                .map_err(|error| error.within(stringify!($field)))?;
            if $message.$field.is_none() && !($null).contains(&$context.version) {
                return Err($crate::wire::primitive::Reason::Null.at(stringify!($field)));
            }
        }
    };
    ($message:ident.$field:ident, $reader:ident, $context:ident, $versions:expr) => {
        if ($versions).contains(&$context.version) {
            $message.$field = $crate::wire::primitive::Wire::decode($reader, $context)
                .map_err(|error| error.within(stringify!($field)))?;
        }
    };
}

macro_rules! encode_field {
    ($place:expr, $out:ident, $context:ident, $versions:expr
        $(, null $null:expr)?, tag $tag:literal in $tagged:expr) => {};
    ($place:expr, $out:ident, $context:ident, $versions:expr $(, null $null:expr)?) => {
        if ($versions).contains(&$context.version) {
            $crate::wire::primitive::Wire::encode(&$place, $out, $context);
        }
    };
}

#[cfg(test)]
macro_rules! arbitrary_field {
    ($place:expr, $source:ident, $versions:expr
        $(, null $null:expr)?, tag $tag:literal in $tagged:expr) => {
        if ($tagged).contains(&$source.version()) {
            $place = $crate::wire::oracle::Arbitrary::arbitrary($source);
        }
    };
    ($place:expr, $source:ident, $versions:expr, null $null:expr) => {
        if ($versions).contains(&$source.version()) {
            let nullable = ($null).contains(&$source.version());
            $place = $crate::wire::oracle::arbitrary_option($source, nullable);
        }
    };
    ($place:expr, $source:ident, $versions:expr) => {
        if ($versions).contains(&$source.version()) {
            $place = $crate::wire::oracle::Arbitrary::arbitrary($source);
        }
    };
}

#[cfg(test)]
pub(crate) use arbitrary_field;
pub(crate) use {decode_field, encode_field, message, messages};
