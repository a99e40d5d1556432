/* SPDX-License-Identifier: MIT */
/*
 * Whether what a loss of power left is what a guest, its bitmaps and its snapshots may expect.
 *
 * The image must open and be without corruption, hold what the guest may expect (crash-model.h),
 * have bitmaps that are right or inconsistent (crash-bitmaps.h), and each snapshot whole: those
 * that were made and not deleted are there, and none that was deleted. qemu-img is asked about some
 * images, chosen evenly, and about all that are found wrong.
 */
#ifndef MERINO_TESTS_CRASH_JUDGE_H
#define MERINO_TESTS_CRASH_JUDGE_H

#include "crash-run.h"

/* What was looked at, for the tests' reports. */
typedef struct CrashTally {
    int64_t writes, flushes; /* of the workload */
    int64_t cuts;            /* moments */
    int64_t failures;        /* requests that failed */
    int64_t states;          /* contents of the disks that were judged */
    int64_t by_qemu;         /* of these, by qemu-img */
    int64_t sound_bitmaps, snapshots;
} CrashTally;

/* Once, after g_test_init(). Warnings, in which faults are told, are dropped. */
void crash_judge_init(void);
/* From MERINO_TEST_SEED, or always the same; printed. */
uint32_t crash_seed(void);
int64_t crash_env_number(const char *name, int64_t otherwise);

/* qemu-img is asked about one in so many images from now on. */
void crash_judge_begin(int64_t ask_every);
const CrashTally *crash_judge_tally(void);
void crash_judge_count(const GPtrArray *ops); /* the workload's */
void crash_judge_report(void);

/* Whether these contents, which are loaded, may be what a loss of power at `cut` left. */
bool crash_judge(const CrashRun *run, uint64_t cut, const CrashContent *content);

/* Power is lost at moments of a run that is over: at the beginning and the end of every `stride`th
 * operation of the disks. Ends the program when something is wrong. */
void crash_judge_all_cuts(const CrashRun *run, const GPtrArray *ops, int64_t stride, int subsets);
/* The disks' operation `n` failed in a run that is over and still on the disks: what is there, and
 * what a loss of power at one moment after the failure leaves. `done`: it was done all the same. */
void crash_judge_fault(const CrashRun *run, int64_t n, bool done);
/* At so many moments, evenly. */
void crash_judge_some_cuts(const CrashRun *run, const GPtrArray *ops, uint64_t end, int64_t cuts);

#endif
