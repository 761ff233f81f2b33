package petclinic;

import java.time.LocalDate;
import java.util.List;
import java.util.Map;
import java.util.regex.Pattern;
import org.springframework.stereotype.Controller;
import org.springframework.ui.Model;
import org.springframework.web.bind.annotation.GetMapping;
import org.springframework.web.bind.annotation.PathVariable;
import org.springframework.web.bind.annotation.PostMapping;
import org.springframework.web.bind.annotation.RequestParam;
import org.springframework.web.bind.annotation.ResponseBody;

/** Owners, their pets and the pets' visits: pages, forms and JSON. */
@Controller
class OwnerController {
    private static final Pattern TELEPHONE = Pattern.compile("\\+?[0-9]{4,15}");
    private static final int SHORT_TEXT = 30;
    private static final int LONG_TEXT = 255;

    private final Clinic clinic;

    OwnerController(Clinic clinic) {
        this.clinic = clinic;
    }

    @GetMapping("/owners")
    String list(@RequestParam(defaultValue = "") String lastName, Model model) {
        model.addAttribute("owners", clinic.owners(lastName));
        model.addAttribute("lastName", lastName);
        return "owners";
    }

    @GetMapping(path = "/owners.json", produces = "application/json")
    @ResponseBody
    List<Owner> json(@RequestParam(defaultValue = "") String lastName) {
        return clinic.owners(lastName);
    }

    @GetMapping("/owners/{id:\\d{1,9}}")
    String detail(@PathVariable int id, Model model) {
        model.addAttribute("owner", find(id));
        return "owner";
    }

    @GetMapping(path = "/owners/{id:\\d{1,9}}.json", produces = "application/json")
    @ResponseBody
    Owner detailJson(@PathVariable int id) {
        return find(id);
    }

    @GetMapping("/owners/new")
    String newOwner(Model model) {
        return ownerForm(new Form(Map.of()), model);
    }

    @PostMapping("/owners/new")
    String addOwner(@RequestParam Map<String, String> values, Model model) {
        Form form = new Form(values);
        Owner owner = read(form, 0);
        return form.valid() ? "redirect:/owners/" + clinic.addOwner(owner) : ownerForm(form, model);
    }

    @GetMapping("/owners/{id:\\d{1,9}}/edit")
    String editOwner(@PathVariable int id, Model model) {
        Owner owner = find(id);
        Form form = new Form(Map.of(
                "firstName", owner.firstName(),
                "lastName", owner.lastName(),
                "address", owner.address(),
                "city", owner.city(),
                "telephone", owner.telephone()));
        return ownerForm(form, model);
    }

    @PostMapping("/owners/{id:\\d{1,9}}/edit")
    String updateOwner(@PathVariable int id, @RequestParam Map<String, String> values, Model model) {
        find(id);
        Form form = new Form(values);
        Owner owner = read(form, id);
        if (!form.valid()) {
            return ownerForm(form, model);
        }
        clinic.updateOwner(owner);
        return "redirect:/owners/" + id;
    }

    @GetMapping("/owners/{id:\\d{1,9}}/pets/new")
    String newPet(@PathVariable int id, Model model) {
        return petForm(find(id), new Form(Map.of()), model);
    }

    @PostMapping("/owners/{id:\\d{1,9}}/pets/new")
    String addPet(@PathVariable int id, @RequestParam Map<String, String> values, Model model) {
        Owner owner = find(id);
        Form form = new Form(values);
        String name = form.text("name", SHORT_TEXT);
        LocalDate birthDate = form.date("birthDate", LocalDate.now());
        PetType type = form.choice("type", clinic.petTypes());
        if (!form.valid()) {
            return petForm(owner, form, model);
        }
        clinic.addPet(id, name, birthDate, type.id());
        return "redirect:/owners/" + id;
    }

    @GetMapping("/owners/{id:\\d{1,9}}/pets/{petId:\\d{1,9}}/visits/new")
    String newVisit(@PathVariable int id, @PathVariable int petId, Model model) {
        Form form = new Form(Map.of("date", LocalDate.now().toString()));
        return visitForm(find(id), petId, form, model);
    }

    @PostMapping("/owners/{id:\\d{1,9}}/pets/{petId:\\d{1,9}}/visits/new")
    String addVisit(
            @PathVariable int id, @PathVariable int petId, @RequestParam Map<String, String> values, Model model) {
        Owner owner = find(id);
        Pet pet = find(owner, petId);
        Form form = new Form(values);
        LocalDate date = form.date("date", LocalDate.now().plusYears(1));
        String description = form.text("description", LONG_TEXT);
        if (!form.valid()) {
            return visitForm(owner, petId, form, model);
        }
        clinic.addVisit(pet.id(), date, description);
        return "redirect:/owners/" + id;
    }

    private Owner find(int id) {
        return clinic.owner(id).orElseThrow(() -> new NotFoundException("There is no owner number " + id + "."));
    }

    private static Pet find(Owner owner, int petId) {
        return owner.pets().stream()
                .filter(pet -> pet.id() == petId)
                .findFirst()
                .orElseThrow(() -> new NotFoundException(owner.fullName() + " has no pet number " + petId + "."));
    }

    private static Owner read(Form form, int id) {
        return new Owner(
                id,
                form.text("firstName", SHORT_TEXT),
                form.text("lastName", SHORT_TEXT),
                form.text("address", LONG_TEXT),
                form.text("city", SHORT_TEXT),
                form.text("telephone", TELEPHONE, "must be 4 to 15 digits"),
                List.of());
    }

    private static String ownerForm(Form form, Model model) {
        model.addAttribute("form", form);
        return "owner-form";
    }

    private String petForm(Owner owner, Form form, Model model) {
        model.addAttribute("owner", owner);
        model.addAttribute("types", clinic.petTypes());
        model.addAttribute("form", form);
        return "pet-form";
    }

    private static String visitForm(Owner owner, int petId, Form form, Model model) {
        model.addAttribute("owner", owner);
        model.addAttribute("pet", find(owner, petId));
        model.addAttribute("form", form);
        return "visit-form";
    }
}
