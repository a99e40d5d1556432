/* SPDX-License-Identifier: MIT */
/*
 * Limits: from an object's properties to a ThrottleConfig, with QEMU's checks and words.
 */
#include "block/throttle.h"
#include "util/error.h"

#include <inttypes.h>

#define RATE_MAX INT64_C(1000000000000000)

/* --- where the properties are --- */

typedef struct RateField {
    size_t has, value;
} RateField;

typedef struct RateOptions {
    const char *name; /* without prefix */
    RateField average, burst, seconds;
} RateOptions;

#define FIELD(type, member)                                                                        \
    {                                                                                              \
        offsetof(type, has_##member), offsetof(type, member)                                       \
    }
#define RATE_OPTIONS(type, text, member)                                                           \
    {                                                                                              \
        text, FIELD(type, member), FIELD(type, member##_max), FIELD(type, member##_max_length)     \
    }
#define ALL_RATE_OPTIONS(type, prefix)                                                             \
    {                                                                                              \
        [THROTTLE_BPS_TOTAL] = RATE_OPTIONS(type, "bps-total", prefix##bps_total),                 \
        [THROTTLE_BPS_READ] = RATE_OPTIONS(type, "bps-read", prefix##bps_read),                    \
        [THROTTLE_BPS_WRITE] = RATE_OPTIONS(type, "bps-write", prefix##bps_write),                 \
        [THROTTLE_IOPS_TOTAL] = RATE_OPTIONS(type, "iops-total", prefix##iops_total),              \
        [THROTTLE_IOPS_READ] = RATE_OPTIONS(type, "iops-read", prefix##iops_read),                 \
        [THROTTLE_IOPS_WRITE] = RATE_OPTIONS(type, "iops-write", prefix##iops_write),              \
    }

static const RateOptions limit_options[THROTTLE_BUCKETS] = ALL_RATE_OPTIONS(ThrottleLimits, );
static const RateOptions x_options[THROTTLE_BUCKETS] =
    ALL_RATE_OPTIONS(ThrottleGroupProperties, x_);

static bool get_field(const void *options, const RateField *field, int64_t *ret)
{
    if (!*(const bool *)((const char *)options + field->has)) {
        return false;
    }
    *ret = *(const int64_t *)((const char *)options + field->value);
    return true;
}

/* --- parsing --- */

void throttle_config_init(ThrottleConfig *config)
{
    *config = (ThrottleConfig){ 0 };
    for (int i = 0; i < THROTTLE_BUCKETS; i++) {
        config->rates[i].burst_seconds = 1;
    }
}

static bool parse_limits(const ThrottleLimits *limits, ThrottleConfig *config, GError **error)
{
    for (int i = 0; i < THROTTLE_BUCKETS; i++) {
        ThrottleRate *rate = &config->rates[i];
        const RateOptions *from = &limit_options[i];
        int64_t seconds;

        get_field(limits, &from->average, &rate->average);
        get_field(limits, &from->burst, &rate->burst);
        if (!get_field(limits, &from->seconds, &seconds)) {
            continue;
        }
        if (seconds > UINT32_MAX) {
            merino_error(error, "%s-max-length value must be in the range [0, %" PRIu32 "]",
                         from->name, UINT32_MAX);
            return false;
        }
        rate->burst_seconds = seconds < 0 ? INT64_MAX : seconds; /* which no burst can have */
    }
    if (limits->has_iops_size) {
        config->operation_size = limits->iops_size;
    }
    return throttle_config_check(config, error);
}

static bool check_x_value(int64_t value, GError **error)
{
    if (value < 0) {
        merino_error(error, "Property values cannot be negative");
        return false;
    }
    return true;
}

static bool parse_x_options(const ThrottleGroupProperties *properties, ThrottleConfig *config,
                            GError **error)
{
    for (int i = 0; i < THROTTLE_BUCKETS; i++) {
        ThrottleRate *rate = &config->rates[i];
        const RateOptions *from = &x_options[i];
        int64_t seconds = rate->burst_seconds;

        if ((get_field(properties, &from->average, &rate->average) &&
             !check_x_value(rate->average, error)) ||
            (get_field(properties, &from->burst, &rate->burst) &&
             !check_x_value(rate->burst, error)) ||
            (get_field(properties, &from->seconds, &seconds) && !check_x_value(seconds, error))) {
            return false;
        }
        if (seconds > UINT32_MAX) {
            merino_error(error, "x-%s-max-length value must be in therange [0, %" PRIu32 "]",
                         from->name, UINT32_MAX);
            return false;
        }
        rate->burst_seconds = seconds;
    }
    if (properties->has_x_iops_size) {
        config->operation_size = properties->x_iops_size;
        return check_x_value(properties->x_iops_size, error);
    }
    return true;
}

bool throttle_config_parse(const ThrottleGroupProperties *properties, ThrottleConfig *ret,
                           GError **error)
{
    ThrottleConfig config;

    throttle_config_init(&config);
    if (!parse_x_options(properties, &config, error) ||
        (properties->limits && !parse_limits(properties->limits, &config, error))) {
        return false;
    }
    *ret = config;
    return true;
}

/* --- checks --- */

/* A total beside a part of it, for averages or bursts. */
static bool has_conflict(const ThrottleRate *total)
{
    const ThrottleRate *reads = total + 1, *writes = total + 2;

    return (total->average && (reads->average || writes->average)) ||
           (total->burst && (reads->burst || writes->burst));
}

static const char *find_fault(const ThrottleRate *rate)
{
    if (rate->average < 0 || rate->burst < 0 || rate->average > RATE_MAX ||
        rate->burst > RATE_MAX) {
        return "bps/iops/max values must be within [0, 1000000000000000]";
    }
    if (rate->burst_seconds == 0) {
        return "the burst length cannot be 0";
    }
    if (rate->burst_seconds > 1 && rate->burst == 0) {
        return "burst length set without burst rate";
    }
    if (rate->burst && rate->burst_seconds > RATE_MAX / rate->burst) {
        return "burst length too high for this burst rate";
    }
    if (rate->burst && rate->average == 0) {
        return "bps_max/iops_max require corresponding bps/iops values";
    }
    if (rate->burst && rate->burst < rate->average) {
        return "bps_max/iops_max cannot be lower than bps/iops";
    }
    return NULL;
}

bool throttle_config_check(const ThrottleConfig *config, GError **error)
{
    const ThrottleRate *rates = config->rates;
    const char *fault = NULL;

    if (has_conflict(&rates[THROTTLE_BPS_TOTAL]) || has_conflict(&rates[THROTTLE_IOPS_TOTAL])) {
        fault = "bps/iops/max total values and read/write values cannot be used at the same time";
    } else if (config->operation_size && !rates[THROTTLE_IOPS_TOTAL].average &&
               !rates[THROTTLE_IOPS_READ].average && !rates[THROTTLE_IOPS_WRITE].average) {
        fault = "iops size requires an iops value to be set";
    }
    for (int i = 0; i < THROTTLE_BUCKETS && !fault; i++) {
        fault = find_fault(&rates[i]);
    }
    if (fault) {
        merino_error(error, "%s", fault);
    }
    return !fault;
}
