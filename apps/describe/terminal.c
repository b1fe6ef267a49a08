// Standard output and error, the progress line, and Ctrl-C.
#include "describe.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

static struct {
    bool out_is_terminal, err_is_terminal, quiet, out_failed;
    volatile sig_atomic_t line_open; // a progress line or half an answer stands on the terminal
    bool progress_shown;
    volatile sig_atomic_t mode, interrupted;
} terminal;

// --- interrupts

static void leave(void) {
    if (terminal.line_open && write(STDERR_FILENO, "\n", 1) < 0) {
        _exit(EXIT_INTERRUPTED); // nothing more can be shown
    }
    _exit(EXIT_INTERRUPTED);
}

static void on_sigint(int signal_number) {
    (void)signal_number;
    int saved = errno;
    if (terminal.mode == INTERRUPT_PROMPTS) {
        if (write(STDERR_FILENO, "\n> ", 3) < 0) {
            leave();
        }
    } else if (terminal.mode == INTERRUPT_STOPS && !terminal.interrupted) {
        terminal.interrupted = 1;
    } else {
        leave();
    }
    errno = saved;
}

void interrupt_mode(on_interrupt mode) {
    terminal.mode = mode;
    terminal.interrupted = 0;
}

bool interrupted(void) {
    return terminal.interrupted;
}

// --- set-up

bool terminal_setup(void) {
    bool closed = fcntl(STDOUT_FILENO, F_GETFD) < 0;
    // A closed descriptor would be given to the next file opened, and a message written into it.
    int fd = -1;
    do {
        fd = open("/dev/null", O_RDWR);
    } while (fd >= 0 && fd <= STDERR_FILENO);
    if (fd >= 0) {
        close(fd);
    }
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); // writing past a limit on file sizes fails, and is said
    struct sigaction action = {.sa_handler = on_sigint, .sa_flags = SA_RESTART}, before = {0};
    sigemptyset(&action.sa_mask);
    if (sigaction(SIGINT, NULL, &before) != 0 || before.sa_handler != SIG_IGN) {
        sigaction(SIGINT, &action, NULL); // else Ctrl-C is not for this process: as under nohup
    }
    terminal.out_is_terminal = isatty(STDOUT_FILENO);
    terminal.err_is_terminal = isatty(STDERR_FILENO);
    if (closed) {
        complain("standard output", "is closed");
    }
    return !closed;
}

void terminal_quiet(bool quiet) {
    terminal.quiet = quiet;
}

bool terminal_streams(void) {
    return terminal.out_is_terminal;
}

// --- text

// Bytes of the well-formed UTF-8 character at `text`, 0 where there is none (RFC 3629, table 3-7 of
// the Unicode standard).
static size_t utf8_length(const char *text) {
    const unsigned char *s = (const unsigned char *)text;
    if (s[0] < 0x80) {
        return s[0] != 0;
    }
    size_t n = s[0] >= 0xF0 ? 4 : s[0] >= 0xE0 ? 3 : 2;
    unsigned char low = 0x80, high = 0xBF;
    if (s[0] < 0xC2 || s[0] > 0xF4) {
        return 0;
    }
    low = s[0] == 0xE0 ? 0xA0 : s[0] == 0xF0 ? 0x90 : low;
    high = s[0] == 0xED ? 0x9F : s[0] == 0xF4 ? 0x8F : high;
    if (s[1] < low || s[1] > high) {
        return 0;
    }
    for (size_t i = 2; i < n; i++) {
        if ((s[i] & 0xC0) != 0x80) {
            return 0;
        }
    }
    return n;
}

// C0 (but newline and tab), DEL, and C1, which terminals take for commands.
static bool is_control(const char *text, size_t n) {
    unsigned char first = (unsigned char)text[0];
    if (n == 1) {
        return (first < 0x20 && first != '\n' && first != '\t') || first == 0x7F;
    }
    return n == 2 && first == 0xC2 && (unsigned char)text[1] < 0xA0;
}

// A copy with bad bytes, and control characters if asked, shown as U+FFFD.
static char *clean(const char *text, bool no_controls) {
    static const char mark[] = "\xEF\xBF\xBD";
    char *out = malloc(3 * strlen(text) + 1), *to = out;
    if (!out) {
        return NULL;
    }
    while (*text) {
        size_t n = utf8_length(text), step = n ? n : 1;
        bool bad = !n || (no_controls && is_control(text, n));
        memcpy(to, bad ? mark : text, bad ? 3 : n);
        to += bad ? 3 : n;
        text += step;
    }
    *to = 0;
    return out;
}

char *clean_utf8(const char *text) {
    return clean(text, false);
}

char *clean_line(const char *text) {
    char *line = clean(text, true);
    for (char *at = line; at && *at; at++) {
        *at = *at == '\n' || *at == '\t' ? ' ' : *at;
    }
    return line;
}

size_t mark_length(const char *data, size_t n_bytes) {
    return n_bytes >= 3 && !memcmp(data, "\xEF\xBB\xBF", 3) ? 3 : 0;
}

// --- standard error

static void erase_progress(void) {
    if (terminal.progress_shown) {
        fputs("\r\033[K", stderr);
        terminal.progress_shown = false;
        terminal.line_open = 0;
    }
}

// One line, whatever the text holds.
static void say(const char *name, const char *format, va_list args) {
    char text[2048];
    vsnprintf(text, sizeof text, format, args);
    char *message = clean_line(text), *subject = clean_line(name ? name : "");
    erase_progress();
    if (terminal.line_open && terminal.err_is_terminal) {
        fputc('\n', stderr);
        terminal.line_open = 0;
    }
    fprintf(stderr, "describe: %s%s%s\n", subject ? subject : "", name ? ": " : "",
            message ? message : "out of memory");
    free(message);
    free(subject);
}

void complain(const char *name, const char *format, ...) {
    va_list args;
    va_start(args, format);
    say(name, format, args);
    va_end(args);
}

const char *last_reason(const char *name) {
    const char *text = lv_error();
    size_t n = strlen(name);
    return !strncmp(text, name, n) && !strncmp(text + n, ": ", 2) ? text + n + 2 : text;
}

void note(const char *format, ...) {
    if (!terminal.quiet) {
        va_list args;
        va_start(args, format);
        say(NULL, format, args);
        va_end(args);
    }
}

void progress(const char *format, ...) {
    if (terminal.quiet || !terminal.err_is_terminal) {
        return;
    }
    struct winsize size = {0};
    char text[512];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    char *line = clean_line(text);
    if (line && ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 1 &&
        strlen(line) >= size.ws_col) {
        size_t n = size.ws_col - 1u; // a wrapped line could not be erased
        while (n > 0 && ((unsigned char)line[n] & 0xC0) == 0x80) {
            n--;
        }
        line[n] = 0;
    }
    fprintf(stderr, "\r\033[K%s", line ? line : "");
    free(line);
    terminal.progress_shown = true;
    terminal.line_open = 1;
}

void progress_end(void) {
    erase_progress();
}

bool progress_fetch(void *user, size_t n_bytes, size_t total_bytes) {
    enum { WIDTH = 24 };
    const char *label = user;
    double mb = (double)n_bytes / 1e6;
    if (total_bytes) {
        double part = (double)n_bytes / (double)total_bytes;
        int filled = part < 1 ? (int)(part * WIDTH) : WIDTH;
        progress("[%.*s%*s] %.1f of %.1f MB  %s", filled, "########################",
                 WIDTH - filled, "", mb, (double)total_bytes / 1e6, label);
    } else {
        progress("%.1f MB  %s", mb, label);
    }
    return !interrupted();
}

// --- standard output

static bool write_all(const char *data, size_t n_bytes) {
    while (n_bytes > 0) {
        ssize_t n = write(STDOUT_FILENO, data, n_bytes);
        if (n < 0 && errno != EINTR) {
            return false;
        }
        if (n > 0) {
            data += n;
            n_bytes -= (size_t)n;
        }
    }
    return true;
}

bool put_text(const char *text) {
    if (terminal.out_failed || !*text) {
        return !terminal.out_failed;
    }
    erase_progress();
    char *safe = terminal.out_is_terminal ? clean(text, true) : NULL;
    const char *shown = safe ? safe : text;
    if (!write_all(shown, strlen(shown))) {
        terminal.out_failed = true;
        complain("standard output", "%s", strerror(errno));
    } else if (terminal.out_is_terminal) {
        terminal.line_open = shown[strlen(shown) - 1] != '\n';
    }
    free(safe);
    return !terminal.out_failed;
}

bool put_line(const char *text) {
    int mode = terminal.mode;
    terminal.mode = INTERRUPT_STOPS;
    size_t n = strlen(text);
    bool ok = put_text(text) && (n && text[n - 1] == '\n' ? true : put_text("\n"));
    terminal.mode = mode;
    if (mode == INTERRUPT_LEAVES && terminal.interrupted) {
        leave();
    }
    return ok;
}

bool put_failed(void) {
    return terminal.out_failed;
}
