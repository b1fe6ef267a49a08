// Status codes and the message behind the last failure.
#ifndef LV_CORE_STATUS_H
#define LV_CORE_STATUS_H

// Every function that can fail returns an lv_status: LV_OK or one of the negative codes.
typedef enum lv_status {
    LV_OK = 0,
    LV_EINVAL = -1,       // the caller's argument is wrong
    LV_ENOMEM = -2,       // out of host or device memory
    LV_EIO = -3,          // reading or writing failed
    LV_EFORMAT = -4,      // the bytes are not what they claim to be
    LV_EUNSUPPORTED = -5, // well-formed, but not something this build or backend does
    LV_ENOTFOUND = -6,    // no such file, tensor, model
    LV_ELIMIT = -7,       // a cap on bytes, pixels, tokens or sides would be passed
    LV_ENETWORK = -8,     // a transfer failed
    LV_EDEVICE = -9,      // the device refused or is in a broken state
    LV_ECANCELLED = -10,  // the caller asked to stop
    LV_EFULL = -11        // the disk has no room
} lv_status;

#if defined(__GNUC__)
#define LV_MUST_CHECK __attribute__((warn_unused_result))
#define LV_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))
#else
#define LV_MUST_CHECK
#define LV_PRINTF(fmt, args)
#endif

// Records a thread-local message (what failed, what was expected, what was found) and returns
// `code`. Control characters in it become spaces: it is always one printable line.
lv_status lv_fail(lv_status code, const char *format, ...) LV_PRINTF(2, 3);

// Puts "context: " in front of the current message and returns `code` unchanged.
lv_status lv_fail_in(lv_status code, const char *format, ...) LV_PRINTF(2, 3);

// The calling thread's last message; "" where nothing has failed. Valid until its next failure.
const char *lv_error(void);

// A code's fixed name, such as "LV_EFORMAT".
const char *lv_status_name(lv_status code);

#define LV_TRY(expression)                                                                         \
    do {                                                                                           \
        lv_status lv_try_status_ = (expression);                                                   \
        if (lv_try_status_ != LV_OK) {                                                             \
            return lv_try_status_;                                                                 \
        }                                                                                          \
    } while (0)

// The same inside a function that cleans up at `done:` and returns its local `status`.
#define LV_TRY_DONE(expression)                                                                    \
    do {                                                                                           \
        status = (expression);                                                                     \
        if (status != LV_OK) {                                                                     \
            goto done;                                                                             \
        }                                                                                          \
    } while (0)

#endif
