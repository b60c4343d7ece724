//! The laws, one room a subject.
//!
//! | room | what its laws are about |
//! |---|---|
//! | `pools` | a pool as a whole: what it is, what it lists, many at once |
//! | `making` | drafts, sizes, and the instant at which a volume exists |
//! | `removing` | the instant at which it does not |
//! | `growing` | larger volumes |
//! | `contents` | a volume's bytes and holes |
//! | `filling` | drafts that are filled from files or written by programs |
//! | `reaching` | opening, closing, describing |
//! | `damage` | what is broken is found |

mod contents;
mod damage;
mod filling;
mod growing;
mod making;
mod pools;
mod reaching;
mod removing;

use crate::law::{Law, Need};

/// Makes the list of laws, and the macro that makes a test of each.
macro_rules! every_law {
    ($dollar:tt $($room:ident { $($name:ident [$($need:ident)*] $promise:literal)* })*) => {
        const LAWS: &[Law] = &[
            $($(Law {
                name: stringify!($name),
                promise: $promise,
                needs: &[$(Need::$need),*],
                run: $room::$name,
            },)*)*
        ];

        /// Makes a module of tests, one for each law, each on a bench of its own: an expression
        /// that is a [`Bench`](crate::Bench), or an `Option` of one where the test may lack a
        /// prerequisite.
        #[macro_export]
        macro_rules! laws_hold_for {
            ($dollar driver:ident, $dollar bench:expr) => {
                mod $dollar driver {
                    use super::*;
                    fn hold(law: &str) {
                        let strict = std::env::var_os("SISTEMO_TEST_STRICT");
                        let strict = strict.is_some_and(|value| value == "1");
                        $dollar crate::testing::hold(law, $dollar bench, strict);
                    }
                    $($(#[test] fn $name() { hold(stringify!($name)); })*)*
                }
            };
        }
    };
}

/// All laws, the simplest first.
#[must_use]
pub fn laws() -> &'static [Law] {
    LAWS
}

every_law! { $
    pools {
        an_empty_pool_is_usable_and_has_nothing []
            "A pool that was just made can be used, lists nothing and tells its space."
        the_powers_are_as_the_driver_says []
            "A pool has the powers that its driver tells of, and no others."
        operations_on_a_missing_volume_name_it []
            "What is asked of a volume that is not there is refused with the volume's name."
        a_second_handle_sees_everything []
            "What one handle of a pool changes, another sees at once."
        many_at_once_do_not_meet []
            "Threads that work on different volumes of one pool do not disturb each other."
    }
    making {
        a_committed_volume_is_as_described []
            "A volume that was committed is found as it was described."
        a_new_volume_is_all_zeros_and_takes_no_space []
            "A new volume reads as zeros and takes less than 1 MiB."
        a_draft_is_no_volume_and_dropped_leaves_nothing []
            "A draft is found as a draft, and when it is dropped nothing of it stays."
        a_volume_cannot_be_made_twice []
            "A volume that is there is not made again, and stays as it is."
        a_draft_cannot_be_begun_twice []
            "A draft that is there is not begun again, and can be committed."
        every_filesystem_can_be_recorded []
            "A volume can be made for each of the filesystems."
        the_size_survives_at_both_limits []
            "Volumes of 512 bytes, 1 MiB and 8 TiB have that size to the last byte."
        impossible_sizes_are_refused []
            "A size that is 0, no multiple of 512 or beyond all bounds is refused."
    }
    removing {
        a_removed_volume_is_gone_and_removing_again_changes_nothing []
            "A removed volume is gone, others stay, and removing it again changes nothing."
        remove_takes_an_abandoned_draft []
            "Removing takes a draft whose owner was killed."
    }
    growing {
        growing_keeps_the_data_and_adds_zeros []
            "A grown volume holds what it did, and zeros behind that."
        growing_never_shrinks []
            "Growing to a smaller size is refused, to the same size changes nothing."
        growing_a_damaged_volume_is_refused []
            "A volume whose data is cut short is not grown, for that would hide it."
    }
    contents {
        content_keeps_its_holes []
            "What was not written takes no space and is no extent."
        content_gives_space_back []
            "A hole that is made reads as zeros and gives its space back."
        content_ends_at_the_size []
            "Nothing is read, written or made a hole beyond a volume's end."
        content_opened_to_read_is_not_written []
            "A content that was opened to read refuses to be written."
        content_is_what_was_written_whatever_the_order []
            "After any writes and holes, a volume reads as they say, and so do its extents alone."
        what_looks_like_qcow2_is_raw []
            "A guest's bytes are never taken for a disk format: not even a qcow2 header with a \
             backing file."
    }
    filling {
        a_draft_is_filled_without_the_holes []
            "A draft that is filled from a file has its data, none of its holes, and nothing of \
             what was there before."
        filling_refuses_a_larger_source_and_a_device []
            "A source that does not fit, or is no regular file, is refused and harms nothing."
        a_failed_fill_is_not_committed []
            "A draft whose filling failed cannot become a volume."
        a_program_can_format_a_draft []
            "A program such as mkfs can write a draft that has a path."
        a_program_that_resizes_a_draft_is_caught []
            "A draft whose size a program has changed cannot become a volume."
    }
    reaching {
        opening_says_how_and_closing_twice_is_no_error []
            "An open volume is where the pool says, with its size; closing it twice is no error."
        describe_replaces_once []
            "A description is replaced as a whole, and the same one again changes nothing."
    }
    damage {
        verify_finds_real_damage []
            "A volume whose data is cut short, gone or of another size than recorded is told of."
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_law_has_its_name_and_its_promise() {
        let names: HashSet<_> = laws().iter().map(|law| law.name).collect();
        assert_eq!(names.len(), laws().len(), "a name is there twice");
        for law in laws() {
            assert!(
                law.promise.ends_with('.') && law.promise.len() < 130,
                "{}",
                law.name
            );
        }
    }
}
