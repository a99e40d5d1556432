/* SPDX-License-Identifier: MIT */
/*
 * What may be done to a bitmap in which state, and in which words it is refused.
 *
 * A bitmap's condition follows from its flags: use by others weighs more than being read-only,
 * and that more than being inconsistent. Being enabled or disabled refuses nothing; it is what the
 * verbs enable and disable change, and what makes writes go into the bitmap.
 */
#include "bitmap-internal.h"
#include "util/error.h"

typedef enum Condition {
    READY,
    READ_ONLY,    /* the disk is open read-only and the bitmap is stored in it */
    INCONSISTENT, /* what is stored is known to be incomplete */
    READ_ONLY_INCONSISTENT,
    BUSY,    /* held by a job or an export */
    REMOVED, /* by an earlier action of the same transaction */
    CONDITIONS,
} Condition;

typedef enum Refusal {
    OK,
    IN_USE,
    IS_READ_ONLY,
    IS_INCONSISTENT,
} Refusal;

/* Disabling or enabling changes no stored bit, so a read-only bitmap allows it; an inconsistent
 * one can only be removed. */
/* clang-format off */
static const Refusal refusals[CONDITIONS][BITMAP_VERBS] = {
    [READY] = {
        [BITMAP_VERB_REMOVE] = OK,
        [BITMAP_VERB_CLEAR] = OK,
        [BITMAP_VERB_ENABLE] = OK,
        [BITMAP_VERB_DISABLE] = OK,
        [BITMAP_VERB_MERGE_INTO] = OK,
        [BITMAP_VERB_MERGE_FROM] = OK,
        [BITMAP_VERB_RESIZE] = OK,
    },
    [READ_ONLY] = {
        [BITMAP_VERB_REMOVE] = IS_READ_ONLY,
        [BITMAP_VERB_CLEAR] = IS_READ_ONLY,
        [BITMAP_VERB_ENABLE] = OK,
        [BITMAP_VERB_DISABLE] = OK,
        [BITMAP_VERB_MERGE_INTO] = IS_READ_ONLY,
        [BITMAP_VERB_MERGE_FROM] = OK,
        [BITMAP_VERB_RESIZE] = IS_READ_ONLY,
    },
    [INCONSISTENT] = {
        [BITMAP_VERB_REMOVE] = OK,
        [BITMAP_VERB_CLEAR] = IS_INCONSISTENT,
        [BITMAP_VERB_ENABLE] = IS_INCONSISTENT,
        [BITMAP_VERB_DISABLE] = IS_INCONSISTENT,
        [BITMAP_VERB_MERGE_INTO] = IS_INCONSISTENT,
        [BITMAP_VERB_MERGE_FROM] = IS_INCONSISTENT,
        [BITMAP_VERB_RESIZE] = IS_INCONSISTENT,
    },
    [READ_ONLY_INCONSISTENT] = {
        [BITMAP_VERB_REMOVE] = IS_READ_ONLY,
        [BITMAP_VERB_CLEAR] = IS_READ_ONLY,
        [BITMAP_VERB_ENABLE] = IS_INCONSISTENT,
        [BITMAP_VERB_DISABLE] = IS_INCONSISTENT,
        [BITMAP_VERB_MERGE_INTO] = IS_READ_ONLY,
        [BITMAP_VERB_MERGE_FROM] = IS_INCONSISTENT,
        [BITMAP_VERB_RESIZE] = IS_READ_ONLY,
    },
    [BUSY] = {
        [BITMAP_VERB_REMOVE] = IN_USE,
        [BITMAP_VERB_CLEAR] = IN_USE,
        [BITMAP_VERB_ENABLE] = IN_USE,
        [BITMAP_VERB_DISABLE] = IN_USE,
        [BITMAP_VERB_MERGE_INTO] = IN_USE,
        [BITMAP_VERB_MERGE_FROM] = IN_USE,
        [BITMAP_VERB_RESIZE] = IN_USE,
    },
    [REMOVED] = {
        [BITMAP_VERB_REMOVE] = IN_USE,
        [BITMAP_VERB_CLEAR] = IN_USE,
        [BITMAP_VERB_ENABLE] = IN_USE,
        [BITMAP_VERB_DISABLE] = IN_USE,
        [BITMAP_VERB_MERGE_INTO] = IN_USE,
        [BITMAP_VERB_MERGE_FROM] = IN_USE,
        [BITMAP_VERB_RESIZE] = IN_USE,
    },
};
/* clang-format on */

static Condition condition(const BitmapState *state)
{
    if (state->removed) {
        return REMOVED;
    }
    if (state->holders) {
        return BUSY;
    }
    if (state->read_only) {
        return state->inconsistent ? READ_ONLY_INCONSISTENT : READ_ONLY;
    }
    return state->inconsistent ? INCONSISTENT : READY;
}

static bool refuse(const DirtyBitmap *bitmap, Refusal refusal, GError **error)
{
    static const char *const words[] = {
        [IN_USE] = "is currently in use by another operation and cannot be used",
        [IS_READ_ONLY] = "is readonly and cannot be modified",
        [IS_INCONSISTENT] = "is inconsistent and cannot be used",
    };

    if (refusal == OK) {
        return true;
    }
    merino_error(error, "Bitmap '%s' %s", bitmap->name ? bitmap->name : "", words[refusal]);
    return false;
}

bool bitmap_may(const DirtyBitmap *bitmap, BitmapVerb verb, GError **error)
{
    return refuse(bitmap, refusals[condition(&bitmap->state)][verb], error);
}

bool bitmap_transition(DirtyBitmap *bitmap, BitmapVerb verb, GError **error)
{
    if (!bitmap_may(bitmap, verb, error)) {
        return false;
    }
    switch (verb) {
    case BITMAP_VERB_ENABLE:
        bitmap->state.enabled = true;
        break;
    case BITMAP_VERB_DISABLE:
        bitmap->state.enabled = false;
        break;
    case BITMAP_VERB_REMOVE:
        bitmap->state.removed = true;
        break;
    default:
        break;
    }
    return true;
}

bool bitmap_check(const DirtyBitmap *bitmap, unsigned needs, GError **error)
{
    const BitmapState *state = &bitmap->state;
    Refusal refusal = OK;

    if ((needs & BITMAP_NEED_NOT_BUSY) && (state->holders || state->removed)) {
        refusal = IN_USE;
    } else if ((needs & BITMAP_NEED_WRITABLE) && state->read_only) {
        refusal = IS_READ_ONLY;
    } else if ((needs & BITMAP_NEED_CONSISTENT) && state->inconsistent) {
        refusal = IS_INCONSISTENT;
    }
    return refuse(bitmap, refusal, error);
}
