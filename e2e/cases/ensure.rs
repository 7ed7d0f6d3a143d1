//! What a case says: which functions are cases, and which answers must be refusals.

use cove_e2e::Outcome;

/// Lists async functions as cases under their own names.
macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        pub(crate) const CASES: &[$crate::world::Case] = &[$(
            $crate::world::Case { name: stringify!($name), unguarded: "", control: false, run: |world| Box::pin($name(world)) }
        ),*];
    };
}

/// Lists attacks: async functions that tell what they reached. As cases they must reach nothing; as controls, with the
/// named guards taken away, they must reach something, or the case shows nothing.
macro_rules! attacks {
    ($($name:ident without $guards:literal),* $(,)?) => {
        pub(crate) const CASES: &[$crate::world::Case] = &[$(
            $crate::world::Case {
                name: stringify!($name),
                unguarded: "",
                control: false,
                run: |world| Box::pin(async move { $crate::escape::holds($name(world).await?) }),
            }
        ),*];
        pub(crate) const CONTROLS: &[$crate::world::Case] = &[$(
            $crate::world::Case {
                name: stringify!($name),
                unguarded: $guards,
                control: true,
                run: |world| Box::pin(async move { $crate::escape::falls($name(world).await?) }),
            }
        ),*];
    };
}

/// An answer that must be a refusal.
pub(crate) trait Refused {
    fn refused(self) -> Outcome<tonic::Status>;
}

impl<T: std::fmt::Debug> Refused for Result<T, tonic::Status> {
    fn refused(self) -> Outcome<tonic::Status> {
        self.map_or_else(Ok, |answer| Err(format!("accepted, and should not be: {answer:?}").into()))
    }
}
