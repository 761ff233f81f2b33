package petclinic;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import org.springframework.http.HttpStatus;
import org.springframework.web.bind.annotation.ControllerAdvice;
import org.springframework.web.bind.annotation.ExceptionHandler;
import org.springframework.web.bind.annotation.ModelAttribute;
import org.springframework.web.bind.annotation.ResponseStatus;
import org.springframework.web.servlet.ModelAndView;
import org.springframework.web.servlet.NoHandlerFoundException;

/** What all pages share: who answers, and a page for what does not exist. */
@ControllerAdvice
class CommonAdvice {
    private static final Path HOSTNAME = Path.of("/proc/sys/kernel/hostname");

    /** The pod's name, read anew for every page: a clone of a snapshot has a name of its own. */
    @ModelAttribute("instance")
    String instance() {
        try {
            return Files.readString(HOSTNAME).strip();
        } catch (IOException unreadable) {
            return "unknown";
        }
    }

    @ExceptionHandler({NotFoundException.class, NoHandlerFoundException.class})
    @ResponseStatus(HttpStatus.NOT_FOUND)
    ModelAndView notFound(Exception failure) {
        String message =
                failure instanceof NotFoundException ? failure.getMessage() : "There is no such page in this clinic.";
        // Attributes of the controllers are not in the model of an error page.
        return new ModelAndView("not-found").addObject("message", message).addObject("instance", instance());
    }
}
