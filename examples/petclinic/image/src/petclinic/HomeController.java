package petclinic;

import java.util.List;
import java.util.Map;
import org.springframework.http.HttpStatus;
import org.springframework.http.ResponseEntity;
import org.springframework.stereotype.Controller;
import org.springframework.ui.Model;
import org.springframework.web.bind.annotation.GetMapping;
import org.springframework.web.bind.annotation.ResponseBody;

/** The first page, the veterinarians, and what a probe asks. */
@Controller
class HomeController {
    private final Clinic clinic;

    HomeController(Clinic clinic) {
        this.clinic = clinic;
    }

    @GetMapping("/")
    String home(Model model) {
        List<Owner> owners = clinic.owners("");
        model.addAttribute("ownerCount", owners.size());
        model.addAttribute("petCount", owners.stream().mapToInt(owner -> owner.pets().size()).sum());
        model.addAttribute("vetCount", clinic.vets().size());
        return "home";
    }

    @GetMapping("/vets")
    String vets(Model model) {
        model.addAttribute("vets", clinic.vets());
        return "vets";
    }

    @GetMapping(path = "/vets.json", produces = "application/json")
    @ResponseBody
    List<Vet> vetsJson() {
        return clinic.vets();
    }

    /** Up means that the database answers: a pod that cannot serve pages gets no requests. */
    @GetMapping(path = "/healthz", produces = "application/json")
    @ResponseBody
    ResponseEntity<Map<String, Object>> health() {
        long uptimeSeconds = PetClinic.uptime().toSeconds();
        try {
            clinic.ping();
            return ResponseEntity.ok(Map.of("status", "UP", "uptimeSeconds", uptimeSeconds));
        } catch (RuntimeException failure) {
            return ResponseEntity.status(HttpStatus.SERVICE_UNAVAILABLE)
                    .body(Map.of("status", "DOWN", "uptimeSeconds", uptimeSeconds, "reason", failure.toString()));
        }
    }
}
