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
//! | `clones` | volumes that are made from volumes |
//! | `snapshots` | volumes as they were |
//! | `sharing` | which space others use too |
//! | `work` | work of all kinds, compared with the same done in memory |
//! | `processes` | processes that are killed half-way, and several at once |
//! | `space` | a pool that is full, and what takes no space |

mod clones;
mod contents;
mod damage;
mod filling;
mod growing;
mod making;
mod pools;
mod processes;
mod reaching;
mod removing;
mod sharing;
mod snapshots;
mod space;
mod work;

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

        /// Makes a module of tests, one for each law; see [`testing`](crate::testing).
        ///
        /// `open` is a function that opens the pool of a [`Place`](crate::Place). `bench` is
        /// evaluated for each test: a [`Bench`](crate::Bench), or an `Option` of one where the
        /// test may lack a prerequisite.
        #[macro_export]
        macro_rules! laws_hold_for {
            ($dollar driver:ident, $dollar open:expr, $dollar bench:expr) => {
                mod $dollar driver {
                    use super::*;

                    fn hold(law: &str) {
                        $dollar crate::testing::hold(law, module_path!(), $dollar bench);
                    }

                    #[test]
                    #[ignore = "a task of other tests"]
                    fn worker() {
                        $dollar crate::testing::work(&$dollar open);
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
        a_hole_gives_back_what_the_volume_has_alone [Snapshots]
            "A hole that is made after a snapshot reads as zeros, gives back what is new, and \
             leaves the snapshot as it is."
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
        examining_reads_all_there_is_and_changes_nothing []
            "Examining a sound volume finds nothing, having read all its data; of another it \
             tells what is wrong."
        examining_reads_the_snapshots_too [Snapshots]
            "Examining a volume reads the data of its snapshots too."
    }
    clones {
        a_clone_holds_what_its_origin_does [Clones]
            "A clone is a volume of its own that holds what its origin does, made at the cost \
             that the pool tells of."
        a_clone_and_its_origin_never_see_each_others_writes [Clones]
            "What is written to a clone or its origin, and how far either grows, is nothing to \
             the other."
        a_clone_keeps_the_holes [Clones]
            "A clone has no data where its origin has none."
        a_clone_may_be_larger_but_not_smaller [Clones]
            "A clone may be larger than its origin and reads as zeros behind it; a smaller one \
             is refused."
        a_chain_of_forty_clones_holds [Clones]
            "Clones of clones hold what they should, forty deep and with some of them gone."
        a_clone_and_its_origin_survive_each_other [Clones]
            "A clone stays when its origin is removed, and the other way round."
        a_clone_is_not_made_over_what_is_there [Clones]
            "A clone is refused the ID of a volume or draft that is there."
        a_clone_of_what_is_missing_is_refused [Clones]
            "A clone of a volume, draft or snapshot that is not there is refused and leaves \
             nothing."
    }
    snapshots {
        a_snapshot_keeps_the_volume_as_it_was [Snapshots]
            "A snapshot is listed with its size and time, and reads as the volume did, whatever \
             is written later."
        a_snapshot_has_the_time_it_was_given [Snapshots]
            "A snapshot's time is the one given when it was taken, even one of long ago."
        what_a_program_reads_of_a_snapshot_is_the_snapshot [Snapshots]
            "Where a snapshot can be read as a file or device, that holds what it does."
        a_snapshot_that_a_vmm_writes_exists_with_its_commit [Snapshots]
            "A snapshot that a VMM writes exists once it is committed, and leaves nothing else."
        a_volume_with_snapshots_is_one_volume [Snapshots]
            "A volume with snapshots is listed and described as one without."
        reverting_takes_back_content_and_size [Snapshots]
            "A volume that was reverted has the snapshot's content and size, and again when that \
             is repeated."
        reverting_changes_the_size_alone_in_the_description [Snapshots]
            "A volume that was renamed keeps its name when it is reverted."
        all_snapshots_stay_after_a_revert [Snapshots]
            "A revert loses no snapshot, neither older nor newer ones."
        snapshot_names_reach_their_limits [Snapshots]
            "Any name that a snapshot can have works, and none is taken for another."
        a_snapshot_is_not_taken_twice [Snapshots]
            "A name that a volume has given is refused, and its snapshot stays as it is."
        deleting_a_snapshot_keeps_the_others [Snapshots]
            "A snapshot can be deleted whatever its place, and again, which changes nothing."
        a_snapshot_keeps_the_holes [Snapshots]
            "A snapshot has no data where the volume has none, and nor has what reverts to it."
        a_clone_can_be_made_from_a_snapshot [Clones Snapshots]
            "A clone of a snapshot holds what that does, and outlives the snapshot and its volume."
        removing_a_volume_takes_its_snapshots_along [Snapshots]
            "A removed volume leaves no snapshots, to another of the same ID neither."
        snapshots_of_what_is_missing_are_refused [Snapshots]
            "What is asked of a missing volume or snapshot is refused as such, and deleting \
             changes nothing."
        a_snapshot_can_be_taken_while_the_volume_is_read [Snapshots]
            "A snapshot can be taken while the volume is open to be read."
    }
    sharing {
        a_volume_of_its_own_shares_nothing []
            "Of a volume that others have no part of, all space is its own."
        what_snapshots_share_with_their_volume_adds_up [Snapshots]
            "What a volume and its snapshots share, and what each has alone, is all there is."
        what_clones_share_adds_up [Clones]
            "What clones share is told of each of them, and only that."
        what_others_have_given_up_is_ones_own [Clones Snapshots]
            "Space that snapshots and other volumes have given up is the last one's own."
    }
    work {
        whatever_is_done_every_volume_holds_what_it_should []
            "Through hundreds of random steps, every volume and snapshot holds what was put into \
             it."
    }
    processes {
        two_processes_work_in_one_pool [Worker]
            "Two processes that work on different volumes of one pool do not disturb each other."
        whenever_it_is_killed_what_returned_is_there_and_the_rest_recovers [Worker]
            "After a kill at any instant, what had returned is there, and what was cut short is \
             undone or can be repeated."
    }
    space {
        a_write_that_finds_the_pool_full_says_so [SmallPlace]
            "A write to a full pool fails as such, harms nothing, and removing gives the room \
             back."
        filling_that_finds_the_pool_full_leaves_nothing [SmallPlace]
            "Filling a draft that does not fit fails as such and leaves nothing."
        a_full_pool_does_what_is_asked_or_stays_as_it_is [SmallPlace]
            "In a full pool every operation is done or refused as such, and then changes nothing."
        an_instant_clone_takes_no_space [Clones SmallPlace]
            "Instant clones fit into a pool that has no room for a copy."
        an_instant_snapshot_takes_no_space [Snapshots SmallPlace]
            "Instant snapshots, and reverting to them, fit into a pool that has no room for a \
             copy."
        a_copy_that_finds_no_space_leaves_nothing [Clones SmallPlace]
            "A clone or snapshot that is a copy fails as such in a full pool and leaves nothing."
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
