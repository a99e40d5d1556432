/* SPDX-License-Identifier: MIT */
/*
 * Options of an open image: from what was given, and the image's own numbers, to what is in force.
 * Texts are QEMU's.
 */
#include "options.h"
#include "util/error.h"
#include "util/size.h"

#include <inttypes.h>

#define L2_CACHE_MAX            (32 * MiB)
#define L2_SLICE_DEFAULT        4096
#define L2_SLICE_MIN            512
#define MIN_L2_SLICES           2
#define REFCOUNT_CACHE_CLUSTERS 4
#define CLEAN_INTERVAL_DEFAULT  600

/* They may be changed at any time, and none decides which bytes are seen. */
const char *const qcow2_runtime_options[] = {
    "lazy-refcounts",
    "pass-discard-request",
    "pass-discard-snapshot",
    "pass-discard-other",
    "overlap-check",
    "cache-size",
    "l2-cache-size",
    "l2-cache-entry-size",
    "refcount-cache-size",
    "cache-clean-interval",
    "encrypt",
    NULL,
};

/* --- overlap checks --- */

static unsigned template_checks(Qcow2OverlapCheckMode mode)
{
    const unsigned constant = QCOW2_OVERLAP_HEADER | QCOW2_OVERLAP_ACTIVE_L1 |
                              QCOW2_OVERLAP_REFCOUNT_TABLE | QCOW2_OVERLAP_SNAPSHOT_TABLE |
                              QCOW2_OVERLAP_BITMAP_DIRECTORY;
    const unsigned cached = constant | QCOW2_OVERLAP_ACTIVE_L2 | QCOW2_OVERLAP_REFCOUNT_BLOCK |
                            QCOW2_OVERLAP_INACTIVE_L1;

    switch (mode) {
    case QCOW2_OVERLAP_CHECK_MODE_NONE:
        return 0;
    case QCOW2_OVERLAP_CHECK_MODE_CONSTANT:
        return constant;
    case QCOW2_OVERLAP_CHECK_MODE_CACHED:
        return cached;
    default:
        return cached | QCOW2_OVERLAP_INACTIVE_L2;
    }
}

static unsigned single_checks(const Qcow2OverlapCheckFlags *flags)
{
    const struct {
        bool given, on;
        unsigned bit;
    } checks[] = {
        { flags->has_main_header, flags->main_header, QCOW2_OVERLAP_HEADER },
        { flags->has_active_l1, flags->active_l1, QCOW2_OVERLAP_ACTIVE_L1 },
        { flags->has_active_l2, flags->active_l2, QCOW2_OVERLAP_ACTIVE_L2 },
        { flags->has_refcount_table, flags->refcount_table, QCOW2_OVERLAP_REFCOUNT_TABLE },
        { flags->has_refcount_block, flags->refcount_block, QCOW2_OVERLAP_REFCOUNT_BLOCK },
        { flags->has_snapshot_table, flags->snapshot_table, QCOW2_OVERLAP_SNAPSHOT_TABLE },
        { flags->has_inactive_l1, flags->inactive_l1, QCOW2_OVERLAP_INACTIVE_L1 },
        { flags->has_inactive_l2, flags->inactive_l2, QCOW2_OVERLAP_INACTIVE_L2 },
        { flags->has_bitmap_directory, flags->bitmap_directory, QCOW2_OVERLAP_BITMAP_DIRECTORY },
    };
    unsigned result =
        template_checks(flags->has_template ? flags->template : QCOW2_OVERLAP_CHECK_MODE_CACHED);

    for (size_t i = 0; i < G_N_ELEMENTS(checks); i++) {
        if (checks[i].given) {
            result = checks[i].on ? result | checks[i].bit : result & ~checks[i].bit;
        }
    }
    return result;
}

static unsigned overlap_checks(const Qcow2OverlapChecks *checks)
{
    if (!checks) {
        return template_checks(QCOW2_OVERLAP_CHECK_MODE_CACHED);
    }
    return checks->type == QCOW2_OVERLAP_CHECKS_TYPE_MODE ? template_checks(checks->u.mode)
                                                          : single_checks(checks->u.flags);
}

/* --- caches --- */

static bool check_numbers(const BlockdevOptionsQcow2 *options, GError **error)
{
    const struct {
        bool given;
        int64_t value;
        const char *name;
    } numbers[] = {
        { options->has_cache_size, options->cache_size, "cache-size" },
        { options->has_l2_cache_size, options->l2_cache_size, "l2-cache-size" },
        { options->has_l2_cache_entry_size, options->l2_cache_entry_size, "l2-cache-entry-size" },
        { options->has_refcount_cache_size, options->refcount_cache_size, "refcount-cache-size" },
    };

    for (size_t i = 0; i < G_N_ELEMENTS(numbers); i++) {
        if (numbers[i].given && numbers[i].value < 0) {
            merino_error(error, "Parameter '%s' expects a non-negative number below 2^64",
                         numbers[i].name);
            return false;
        }
    }
    return true;
}

static bool check_cache_sizes(const BlockdevOptionsQcow2 *options, GError **error)
{
    bool l2 = options->has_l2_cache_size, refcount = options->has_refcount_cache_size;

    if (!options->has_cache_size) {
        return true;
    }
    if (l2 && refcount) {
        merino_error(error, "cache-size, l2-cache-size and refcount-cache-size may not be set at "
                            "the same time");
    } else if (l2 && options->l2_cache_size > options->cache_size) {
        merino_error(error, "l2-cache-size may not exceed cache-size");
    } else if (refcount && options->refcount_cache_size > options->cache_size) {
        merino_error(error, "refcount-cache-size may not exceed cache-size");
    } else {
        return true;
    }
    return false;
}

/* All L2 tables of the disk, in whole slices. */
static int64_t l2_bytes_of_disk(const Qcow2 *q, int64_t slice)
{
    return align_up(size_to_clusters(q, q->header.size) * q->l2_entry_size, slice);
}

/* A cluster in the file's address space is counted once: more than all blocks need is no use. */
static int64_t refcount_bytes_max(const Qcow2 *q)
{
    return QCOW2_MAX_REFTABLE_BYTES / 8 * q->cluster_size;
}

static bool resolve_caches(const Qcow2 *q, const BlockdevOptionsQcow2 *options, Qcow2Options *ret,
                           GError **error)
{
    int64_t refcount_default = REFCOUNT_CACHE_CLUSTERS * q->cluster_size;
    int64_t l2_disk = l2_bytes_of_disk(q, ret->l2_slice_size);
    int64_t l2 = MIN(l2_disk, L2_CACHE_MAX), refcount = refcount_default;

    if (options->has_cache_size && options->has_l2_cache_size) {
        refcount = options->cache_size - options->l2_cache_size;
    } else if (options->has_cache_size && !options->has_refcount_cache_size) {
        l2 = MIN(l2_disk, MAX(options->cache_size - refcount_default, 0));
        refcount = options->cache_size - l2;
    } else if (options->has_cache_size) {
        l2 = options->cache_size - options->refcount_cache_size;
    }
    if (options->has_l2_cache_size) {
        l2 = options->l2_cache_size;
    }
    if (options->has_refcount_cache_size) {
        refcount = options->refcount_cache_size;
    }
    if (refcount / q->cluster_size > INT32_MAX) {
        merino_error(error, "Refcount cache size too big");
        return false;
    }
    ret->l2_cache_size = MAX(MIN(l2, l2_disk), MIN_L2_SLICES * ret->l2_slice_size);
    ret->refcount_cache_size =
        MAX(MIN(refcount, refcount_bytes_max(q)), REFCOUNT_CACHE_CLUSTERS * q->cluster_size);
    return true;
}

static bool resolve_slice(const Qcow2 *q, const BlockdevOptionsQcow2 *options, int64_t *ret,
                          GError **error)
{
    int64_t slice = options->has_l2_cache_entry_size ? options->l2_cache_entry_size
                                                     : MIN(L2_SLICE_DEFAULT, q->cluster_size);

    if (slice < L2_SLICE_MIN || slice > q->cluster_size || !is_power_of_2((uint64_t)slice)) {
        merino_error(error,
                     "L2 cache entry size must be a power of two between %d and the cluster size "
                     "(%" PRId64 ")",
                     L2_SLICE_MIN, q->cluster_size);
        return false;
    }
    *ret = slice;
    return true;
}

/* --- all of them --- */

static bool check_others(const Qcow2 *q, const BlockdevOptionsQcow2 *options,
                         const Qcow2Options *resolved, GError **error)
{
    if (resolved->lazy_refcounts && q->header.version < 3) {
        merino_error(error, "Lazy refcounts require a qcow2 image with at least qemu 1.1 "
                            "compatibility level");
    } else if (resolved->cache_clean_interval < 0 || resolved->cache_clean_interval > UINT32_MAX) {
        merino_error(error, "Cache clean interval too big");
    } else if (options->encrypt) {
        merino_error(error, "No encryption in image header, but options specified format '%s'",
                     BlockdevQcow2EncryptionFormat_str(options->encrypt->format));
    } else {
        return true;
    }
    return false;
}

bool qcow2_options_resolve(const Qcow2 *q, const BlockdevOptionsQcow2 *options, bool discard_unmap,
                           Qcow2Options *ret, GError **error)
{
    bool image_is_lazy = q->header.compatible & QCOW2_COMPAT_LAZY_REFCOUNTS;
    Qcow2Options resolved = {
        .lazy_refcounts = options->has_lazy_refcounts ? options->lazy_refcounts : image_is_lazy,
        .pass_discard_request =
            options->has_pass_discard_request ? options->pass_discard_request : discard_unmap,
        .pass_discard_snapshot =
            !options->has_pass_discard_snapshot || options->pass_discard_snapshot,
        .pass_discard_other = options->has_pass_discard_other && options->pass_discard_other,
        .overlap_check = overlap_checks(options->overlap_check),
        .cache_clean_interval = options->has_cache_clean_interval ? options->cache_clean_interval
                                                                  : CLEAN_INTERVAL_DEFAULT,
    };

    if (!check_numbers(options, error) || !check_cache_sizes(options, error) ||
        !resolve_slice(q, options, &resolved.l2_slice_size, error) ||
        !resolve_caches(q, options, &resolved, error) ||
        !check_others(q, options, &resolved, error)) {
        return false;
    }
    *ret = resolved;
    return true;
}

void qcow2_options_renew(Qcow2 *q)
{
    const BlockNode *node = q->node;

    if (node->options &&
        qcow2_options_resolve(q, &node->options->u.qcow2, node->discard_unmap, &q->options, NULL)) {
        qcow2_tables_apply_options(q);
    } else if (q->header.version < 3) {
        q->options.lazy_refcounts = false;
    }
}
