package petclinic;

import java.time.LocalDate;
import java.util.List;

/** An animal and when it was seen, the latest visit first. */
public record Pet(int id, String name, LocalDate birthDate, PetType type, List<Visit> visits) {}
